package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// counter is the state machine of benchmarks: it counts what it is given, and costs next to nothing.
type counter struct {
	count atomic.Uint64
}

// Apply answers the number of commands by now.
func (c *counter) Apply(*raft.Log) interface{} {
	return c.count.Add(1)
}

func (c *counter) Snapshot() (raft.FSMSnapshot, error) {
	return countSnapshot(c.count.Load()), nil
}

func (c *counter) Restore(source io.ReadCloser) error {
	defer source.Close()
	var count [8]byte
	if _, err := io.ReadFull(source, count[:]); err != nil {
		return fmt.Errorf("restoring the counter: %w", err)
	}
	c.count.Store(binary.BigEndian.Uint64(count[:]))
	return nil
}

// countSnapshot is eight bytes, big-endian.
type countSnapshot uint64

func (s countSnapshot) Persist(sink raft.SnapshotSink) error {
	var count [8]byte
	binary.BigEndian.PutUint64(count[:], uint64(s))
	if _, err := sink.Write(count[:]); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s countSnapshot) Release() {}
