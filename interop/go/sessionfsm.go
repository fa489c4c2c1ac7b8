package main

import (
	"bufio"
	"bytes"
	"io"

	"github.com/hashicorp/raft"
)

// sessionFSM applies enveloped commands once; others as they come (docs/reference/sessions.md). Raft
// calls Apply, Snapshot and Restore one after the other, so the table needs no lock.
type sessionFSM struct {
	inner *ledger
	table *sessionTable
}

func newSessionFSM(inner *ledger) *sessionFSM {
	return &sessionFSM{inner, newSessionTable()}
}

// Apply answers what the ledger answered, now or the first time; an error is a refusal.
func (f *sessionFSM) Apply(log *raft.Log) interface{} {
	if !isEnvelope(log.Data) {
		return f.inner.Apply(log)
	}
	e, err := parseEnvelope(log.Data)
	if err != nil {
		return err
	}
	f.table.move(log.AppendedAt)
	apply := func() interface{} {
		opened := *log
		opened.Data = e.command
		return f.inner.Apply(&opened)
	}
	switch e.kind {
	case kindOpen:
		f.table.open(e.id)
		return nil
	case kindRequest:
		return f.table.request(e, apply)
	case kindOnce:
		return f.table.once(e, apply)
	}
	return apply()
}

func (f *sessionFSM) Snapshot() (raft.FSMSnapshot, error) {
	inner, err := f.inner.Snapshot()
	if err != nil {
		return nil, err
	}
	return &sessionSnapshot{f.table.copied(), inner.(*ledgerSnapshot)}, nil
}

func (f *sessionFSM) Restore(source io.ReadCloser) error {
	defer source.Close()
	r := bufio.NewReaderSize(source, 64<<10)
	table := newSessionTable()
	begin, err := r.Peek(len(envelopeMagic))
	if err == nil && bytes.Equal(begin, envelopeMagic) {
		if table, err = readTable(r); err != nil {
			return err
		}
	}
	if err := f.inner.Restore(io.NopCloser(r)); err != nil {
		return err
	}
	f.table = table
	return nil
}
