package main

import (
	"encoding/binary"
	"io"

	"github.com/hashicorp/raft"
)

// blobPieceSize is what a snapshot of a blob is written by.
const blobPieceSize = 1 << 20

// blob is the state machine of benchmarks of snapshots: as large as it is told to be, and it holds
// nothing of it in memory, so that what the transfer needs can be seen.
type blob struct {
	size int64
}

func (b *blob) Apply(*raft.Log) interface{} { return nil }

func (b *blob) Snapshot() (raft.FSMSnapshot, error) { return b, nil }

// Restore reads all of it, and drops it.
func (b *blob) Restore(source io.ReadCloser) error {
	defer source.Close()
	_, err := io.Copy(io.Discard, source)
	return err
}

// Persist writes numbered pieces of bytes that do not repeat within one.
func (b *blob) Persist(sink raft.SnapshotSink) error {
	piece := make([]byte, blobPieceSize)
	for i, state := 0, uint64(1); i < len(piece); i += 8 {
		state = state*6364136223846793005 + 1442695040888963407
		binary.BigEndian.PutUint64(piece[i:], state)
	}
	for number, left := uint64(0), b.size; left > 0; number++ {
		binary.BigEndian.PutUint64(piece, number)
		if left < int64(len(piece)) {
			piece = piece[:left]
		}
		if _, err := sink.Write(piece); err != nil {
			sink.Cancel()
			return err
		}
		left -= int64(len(piece))
	}
	return sink.Close()
}

func (b *blob) Release() {}
