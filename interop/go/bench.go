package main

import (
	"fmt"
	"net/http"
	"sort"
	"sync"
	"time"
)

// worker is what one client of /bench saw.
type worker struct {
	took   []time.Duration
	errors int
	last   error
}

// postBench has `clients` goroutines apply commands of `size` bytes for `seconds`, one at a time each.
func (n *node) postBench(r *http.Request) (any, error) {
	clients, err := number(r, "clients", 1)
	if err != nil {
		return nil, err
	}
	size, err := number(r, "size", 64)
	if err != nil {
		return nil, err
	}
	length, err := seconds(r, "seconds", time.Second)
	if err != nil {
		return nil, err
	}
	prefix := r.URL.Query().Get("prefix")
	if prefix == "" {
		prefix = fmt.Sprintf("bench-%d", time.Now().UnixNano())
	}
	workers := make([]worker, clients)
	begin := time.Now()
	deadline := begin.Add(length)
	var group sync.WaitGroup
	for i := range workers {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			n.work(&workers[i], fmt.Sprintf("%s-%d", prefix, i), int(size), deadline)
		}(i)
	}
	group.Wait()
	return summary(workers, time.Since(begin)), nil
}

func (n *node) work(w *worker, prefix string, size int, deadline time.Time) {
	same := make([]byte, size)
	for number := 0; time.Now().Before(deadline); number++ {
		data := same
		if !n.opts.count { // the ledger wants ids
			id := fmt.Sprintf("%s-%d", prefix, number)
			data = command(id, max(size-len(id)-1, 0))
		}
		begin := time.Now()
		if err := n.raft.Apply(data, actTimeout).Error(); err != nil {
			w.errors++
			w.last = err
			return
		}
		w.took = append(w.took, time.Since(begin))
	}
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}

func summary(workers []worker, elapsed time.Duration) map[string]any {
	all := []time.Duration{}
	failed, last := 0, ""
	for _, w := range workers {
		all = append(all, w.took...)
		failed += w.errors
		if w.last != nil {
			last = w.last.Error()
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	quantile := func(q float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[int(q*float64(len(all)-1))]) / float64(time.Millisecond)
	}
	return map[string]any{
		"applied": len(all), "errors": failed, "error": last, "seconds": elapsed.Seconds(),
		"per_second": float64(len(all)) / elapsed.Seconds(),
		"p50_ms":     quantile(0.5), "p99_ms": quantile(0.99),
	}
}
