package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// replayHead is what stands before each entry's data in the file of -replay.
type replayHead struct {
	AppendedAt int64 // nanoseconds since 1970; 0 is none
	Size       uint32
}

// replay applies the entries of a file to a state machine of its own, begun from a snapshot where
// there is one. It writes each answer in a line, and the snapshot's SHA-256 in the last.
func replay(path, from string, to io.Writer) error {
	fsm := newSessionFSM(newLedger())
	if from != "" {
		source, err := os.Open(from)
		if err != nil {
			return err
		}
		if err := fsm.Restore(source); err != nil {
			return err
		}
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	r := bufio.NewReaderSize(file, 1<<20)
	out := bufio.NewWriterSize(to, 1<<20)
	for index := uint64(1); ; index++ {
		var head replayHead
		err := binary.Read(r, binary.BigEndian, &head)
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		log := &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: make([]byte, head.Size)}
		if _, err := io.ReadFull(r, log.Data); err != nil {
			return err
		}
		if head.AppendedAt != 0 {
			log.AppendedAt = time.Unix(0, head.AppendedAt)
		}
		fmt.Fprintln(out, answerLine(fsm.Apply(log)))
	}
	snapshot, err := fsm.Snapshot()
	if err != nil {
		return err
	}
	sink := &hashSink{sha256.New()}
	if err := snapshot.Persist(sink); err != nil {
		return err
	}
	fmt.Fprintf(out, "%x\n", sink.Sum(nil))
	return out.Flush()
}

// answerLine is a position, `nil`, or the name of an error.
func answerLine(answer interface{}) string {
	switch answer := answer.(type) {
	case nil:
		return "nil"
	case error:
		name, _, _ := strings.Cut(answer.Error(), ":")
		return name
	default:
		return fmt.Sprint(answer)
	}
}

// hashSink is a raft.SnapshotSink that keeps nothing.
type hashSink struct{ hash.Hash }

func (s *hashSink) Close() error  { return nil }
func (s *hashSink) ID() string    { return "replayed" }
func (s *hashSink) Cancel() error { return errors.New("the snapshot failed") }
