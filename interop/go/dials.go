package main

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/raft"
)

// dialTimeout is that of each dial of /dials.
const dialTimeout = 5 * time.Second

// dialsMax bounds one call of /dials.
const dialsMax = 100_000

// postDials dials `target` `count` times, one at a time: the endpoint there, or with `plain` its port only.
func (n *node) postDials(r *http.Request) (any, error) {
	target := r.URL.Query().Get("target")
	count, err := number(r, "count", 1000)
	if err != nil {
		return nil, err
	}
	plain, err := number(r, "plain", 0)
	if err != nil {
		return nil, err
	}
	if count > dialsMax {
		return nil, fmt.Errorf("%w: count is above %d", errBadRequest, dialsMax)
	}
	dial := func() (net.Conn, error) { return n.layer.Dial(raft.ServerAddress(target), dialTimeout) }
	if plain != 0 {
		dial = func() (net.Conn, error) { return net.DialTimeout("tcp", target, dialTimeout) }
	}
	one := worker{}
	begin := time.Now()
	for i := uint64(0); i < count; i++ {
		start := time.Now()
		conn, err := dial()
		if err != nil {
			return nil, err
		}
		one.took = append(one.took, time.Since(start))
		conn.Close()
	}
	return summary([]worker{one}, time.Since(begin)), nil
}
