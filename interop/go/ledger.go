package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// entry is one command: an id that is to be applied once, and any value.
type entry struct {
	id, value []byte
}

// ledger is the state machine, byte for byte that of rafthttp.testing.ledger: all commands in the
// order in which they were applied. Its snapshot is described in interop/README.md.
type ledger struct {
	mu       sync.Mutex
	entries  []entry // append-only: a snapshot holds a prefix of it
	position map[string]int
	twice    [][]byte
	chain    [sha256.Size]byte // of all entries in order, so that replicas are compared by one text
}

func newLedger() *ledger {
	return &ledger{position: map[string]int{}}
}

// Apply takes `id NUL value`, or an id alone. It answers the position of the id, from 1 on.
func (l *ledger) Apply(log *raft.Log) interface{} {
	id, value, _ := bytes.Cut(log.Data, []byte{0})
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, known := l.position[string(id)]; known {
		l.twice = append(l.twice, id)
		return at
	}
	l.add(entry{id, value})
	return len(l.entries)
}

func (l *ledger) add(e entry) {
	l.entries = append(l.entries, e)
	l.position[string(e.id)] = len(l.entries)
	h := sha256.New()
	h.Write(l.chain[:])
	writeField(h, e.id)
	writeField(h, e.value)
	h.Sum(l.chain[:0])
}

func writeField(w io.Writer, field []byte) error {
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(field)))
	if _, err := w.Write(size[:]); err != nil {
		return err
	}
	_, err := w.Write(field)
	return err
}

// ledgerStats is what /stats tells of the state machine.
type ledgerStats struct {
	Applied int      `json:"applied"`
	Twice   []string `json:"twice"`
	Digest  string   `json:"digest"`
}

func (l *ledger) stats() ledgerStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	twice := make([]string, 0, len(l.twice))
	for _, id := range l.twice {
		twice = append(twice, string(id))
	}
	return ledgerStats{len(l.entries), twice, hex.EncodeToString(l.chain[:])}
}

// ids are those at positions first, first+1, … to at most `count` of them.
func (l *ledger) ids(first, count int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := []string{}
	for at := first; at >= 1 && at <= len(l.entries) && len(found) < count; at++ {
		found = append(found, string(l.entries[at-1].id))
	}
	return found
}

func (l *ledger) Snapshot() (raft.FSMSnapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &ledgerSnapshot{l.entries[:len(l.entries):len(l.entries)], l.twice[:len(l.twice):len(l.twice)]}, nil
}

func (l *ledger) Restore(source io.ReadCloser) error {
	defer source.Close()
	fresh, err := readLedger(source)
	if err != nil {
		return fmt.Errorf("restoring the ledger: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries, l.position, l.twice, l.chain = fresh.entries, fresh.position, fresh.twice, fresh.chain
	return nil
}
