package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"github.com/hashicorp/raft"
)

const (
	snapshotMagic = "ledger 1"
	// fieldSizeMax bounds what one length of a damaged snapshot can make us allocate.
	fieldSizeMax = 128 << 20
)

type ledgerSnapshot struct {
	entries []entry
	twice   [][]byte
}

// Persist streams: nothing but the buffer is held besides the entries themselves.
func (s *ledgerSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s *ledgerSnapshot) Release() {}

func (s *ledgerSnapshot) write(to io.Writer) error {
	w := bufio.NewWriterSize(to, 64<<10)
	w.WriteString(snapshotMagic)
	binary.Write(w, binary.BigEndian, uint64(len(s.entries)))
	binary.Write(w, binary.BigEndian, uint64(len(s.twice)))
	for _, e := range s.entries {
		writeField(w, e.id)
		if err := writeField(w, e.value); err != nil {
			return err
		}
	}
	for _, id := range s.twice {
		if err := writeField(w, id); err != nil {
			return err
		}
	}
	return w.Flush() // a bufio.Writer keeps its first error
}

func readLedger(from io.Reader) (*ledger, error) {
	r := bufio.NewReaderSize(from, 64<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err != nil {
		return nil, err
	}
	if string(magic) != snapshotMagic {
		return nil, errors.New("not a snapshot of a ledger")
	}
	var count, twice uint64
	if err := binary.Read(r, binary.BigEndian, &count); err != nil {
		return nil, err
	}
	if err := binary.Read(r, binary.BigEndian, &twice); err != nil {
		return nil, err
	}
	l := newLedger()
	for ; count > 0; count-- {
		id, err := readField(r)
		if err != nil {
			return nil, err
		}
		value, err := readField(r)
		if err != nil {
			return nil, err
		}
		l.add(entry{id, value})
	}
	for ; twice > 0; twice-- {
		id, err := readField(r)
		if err != nil {
			return nil, err
		}
		l.twice = append(l.twice, id)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		return nil, errors.New("bytes behind the snapshot's end")
	}
	return l, nil
}

func readField(r io.Reader) ([]byte, error) {
	var size uint32
	if err := binary.Read(r, binary.BigEndian, &size); err != nil {
		return nil, err
	}
	if size > fieldSizeMax {
		return nil, errors.New("a field of the snapshot is too long")
	}
	field := make([]byte, size)
	_, err := io.ReadFull(r, field)
	return field, err
}
