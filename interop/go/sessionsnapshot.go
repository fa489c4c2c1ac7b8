package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sort"

	"github.com/hashicorp/raft"
)

// tableMark stands where an envelope has its kind.
const tableMark = 0xff

// tableHead begins a table, behind magic, version and mark.
type tableHead struct {
	Clock, Last    int64
	Sessions, Keys uint64
}

type sessionHead struct {
	ID      envelopeID
	Used    int64
	Lowest  uint64
	Answers uint64
}

type keyHead struct {
	ID          envelopeID
	Fingerprint uint64
	At          int64
}

type answerHead struct {
	Kind byte
	Size uint32
}

// copied is a table to write while commands go on being applied to this one; nil if it is pristine.
func (t *sessionTable) copied() *sessionTable {
	if t.isPristine() {
		return nil
	}
	other := newSessionTable()
	other.clock, other.last = t.clock, t.last
	for at := t.sessions.Front(); at != nil; at = at.Next() {
		s := *at.Value.(*session)
		answers := make(map[uint64]remembered, len(s.answers))
		for sequence, answer := range s.answers {
			answers[sequence] = answer
		}
		s.answers = answers
		other.addSession(&s)
	}
	for at := t.keys.Front(); at != nil; at = at.Next() {
		other.addKey(at.Value.(*key)) // a key never changes
	}
	return other
}

type sessionSnapshot struct {
	table *sessionTable
	inner *ledgerSnapshot
}

func (s *sessionSnapshot) Persist(sink raft.SnapshotSink) error {
	if s.table != nil {
		if err := s.table.write(sink); err != nil {
			sink.Cancel()
			return err
		}
	}
	return s.inner.Persist(sink)
}

func (s *sessionSnapshot) Release() {}

func (t *sessionTable) write(to io.Writer) error {
	sum := crc32.NewIEEE()
	w := bufio.NewWriterSize(io.MultiWriter(to, sum), 64<<10)
	put := func(value interface{}) { binary.Write(w, binary.BigEndian, value) }
	w.Write(envelopeMagic)
	w.Write([]byte{envelopeVersion, tableMark})
	put(tableHead{t.clock, t.last, uint64(t.sessions.Len()), uint64(t.keys.Len())})
	for at := t.sessions.Front(); at != nil; at = at.Next() {
		s := at.Value.(*session)
		put(sessionHead{s.id, s.used, s.lowest, uint64(len(s.answers))})
		sequences := make([]uint64, 0, len(s.answers))
		for sequence := range s.answers {
			sequences = append(sequences, sequence)
		}
		sort.Slice(sequences, func(i, j int) bool { return sequences[i] < sequences[j] })
		for _, sequence := range sequences {
			put(sequence)
			writeAnswer(w, s.answers[sequence])
		}
	}
	for at := t.keys.Front(); at != nil; at = at.Next() {
		k := at.Value.(*key)
		put(keyHead{k.id, k.fingerprint, k.at})
		writeAnswer(w, k.answer)
	}
	if err := w.Flush(); err != nil { // a bufio.Writer keeps its first error
		return err
	}
	return binary.Write(to, binary.BigEndian, sum.Sum32())
}

func writeAnswer(w io.Writer, answer remembered) {
	binary.Write(w, binary.BigEndian, answerHead{answer.kind, uint32(len(answer.content))})
	w.Write(answer.content)
}

var errTableDamaged = errors.New("the table of sessions is damaged, or of another version")

// readTable leaves the reader at the beginning of the inner snapshot.
func readTable(from io.Reader) (*sessionTable, error) {
	sum := crc32.NewIEEE()
	r := io.TeeReader(from, sum)
	get := func(value interface{}) error { return binary.Read(r, binary.BigEndian, value) }
	begin := make([]byte, len(envelopeMagic)+2)
	var head tableHead
	if err := firstError(get(begin), get(&head)); err != nil {
		return nil, err
	}
	if begin[6] != envelopeVersion || begin[7] != tableMark {
		return nil, errTableDamaged
	}
	t := newSessionTable()
	t.clock, t.last = head.Clock, head.Last
	for ; head.Sessions > 0; head.Sessions-- {
		var h sessionHead
		if err := get(&h); err != nil {
			return nil, err
		}
		s := &session{id: h.ID, used: h.Used, lowest: h.Lowest, answers: map[uint64]remembered{}}
		for ; h.Answers > 0; h.Answers-- {
			var sequence uint64
			if err := get(&sequence); err != nil {
				return nil, err
			}
			answer, err := readAnswer(r)
			if err != nil {
				return nil, err
			}
			s.answers[sequence] = answer
		}
		t.addSession(s)
	}
	for ; head.Keys > 0; head.Keys-- {
		var h keyHead
		if err := get(&h); err != nil {
			return nil, err
		}
		answer, err := readAnswer(r)
		if err != nil {
			return nil, err
		}
		t.addKey(&key{h.ID, h.Fingerprint, h.At, answer})
	}
	counted, stored := sum.Sum32(), uint32(0)
	if err := get(&stored); err != nil {
		return nil, err
	}
	if counted != stored {
		return nil, errTableDamaged
	}
	return t, nil
}

func readAnswer(r io.Reader) (remembered, error) {
	var h answerHead
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return remembered{}, err
	}
	if h.Kind > answerKindMax || h.Size > answerSizeMax {
		return remembered{}, errTableDamaged
	}
	content := make([]byte, h.Size)
	_, err := io.ReadFull(r, content)
	return remembered{h.Kind, content}, err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
