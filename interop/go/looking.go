package main

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// logPageMax bounds one answer of /log and /ids.
const logPageMax = 10000

type server struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Suffrage string `json:"suffrage"` // "voter", "nonvoter" or "staging"
}

type stats struct {
	ID           string            `json:"id"`
	Address      string            `json:"address"`
	Language     string            `json:"language"`
	State        string            `json:"state"` // Go's words: Follower, Candidate, Leader, Shutdown
	Leader       string            `json:"leader"`
	Term         uint64            `json:"term"`
	FirstIndex   uint64            `json:"first_index"` // of the log store
	LastIndex    uint64            `json:"last_index"`
	CommitIndex  uint64            `json:"commit_index"`
	AppliedIndex uint64            `json:"applied_index"`
	FSM          ledgerStats       `json:"fsm"`
	Raft         map[string]string `json:"raft"`
}

func (n *node) getStats(*http.Request) (any, error) {
	_, leader := n.raft.LeaderWithID()
	first, err := n.logs.FirstIndex()
	if err != nil {
		return nil, err
	}
	return stats{
		ID:           n.opts.id,
		Address:      n.opts.address,
		Language:     "go",
		State:        n.raft.State().String(),
		Leader:       string(leader),
		Term:         n.raft.CurrentTerm(),
		FirstIndex:   first,
		LastIndex:    n.raft.LastIndex(),
		CommitIndex:  n.raft.CommitIndex(),
		AppliedIndex: n.raft.AppliedIndex(),
		FSM:          n.fsm.stats(),
		Raft:         n.raft.Stats(),
	}, nil
}

func (n *node) getConfiguration(*http.Request) (any, error) {
	future := n.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, err
	}
	servers := []server{}
	for _, s := range future.Configuration().Servers {
		suffrage := strings.ToLower(s.Suffrage.String())
		servers = append(servers, server{string(s.ID), string(s.Address), suffrage})
	}
	return map[string]any{"index": future.Index(), "servers": servers}, nil
}

// logged is one entry of /log: short keys' worth of JSON, because there are many.
type logged struct {
	Index      uint64 `json:"index"`
	Term       uint64 `json:"term"`
	Type       uint8  `json:"type"`
	Size       int    `json:"size"`
	SHA256     string `json:"sha256"` // of the data
	Extensions string `json:"extensions"`
	AppendedAt string `json:"appended_at"` // RFC3339Nano in UTC; "" for the zero time
}

func (n *node) getLog(r *http.Request) (any, error) {
	first, err := number(r, "first", 1)
	if err != nil {
		return nil, err
	}
	last, err := number(r, "last", first+logPageMax-1)
	if err != nil {
		return nil, err
	}
	held, err := n.logs.FirstIndex()
	if err != nil {
		return nil, err
	}
	end, err := n.logs.LastIndex()
	if err != nil {
		return nil, err
	}
	if first < held {
		first = held
	}
	if last > end {
		last = end
	}
	found := []logged{}
	for index := first; index != 0 && index <= last && len(found) < logPageMax; index++ {
		var entry raft.Log
		if err := n.logs.GetLog(index, &entry); err != nil {
			return nil, err
		}
		found = append(found, describe(&entry))
	}
	return map[string]any{"first_index": held, "last_index": end, "entries": found}, nil
}

func describe(entry *raft.Log) logged {
	sum := sha256.Sum256(entry.Data)
	at := ""
	if !entry.AppendedAt.IsZero() {
		at = entry.AppendedAt.UTC().Format(time.RFC3339Nano)
	}
	return logged{
		entry.Index, entry.Term, uint8(entry.Type), len(entry.Data), hex.EncodeToString(sum[:]),
		hex.EncodeToString(entry.Extensions), at,
	}
}

func (n *node) getIDs(r *http.Request) (any, error) {
	first, err := number(r, "first", 1)
	if err != nil {
		return nil, err
	}
	return map[string]any{"ids": n.fsm.ids(int(first), logPageMax)}, nil
}
