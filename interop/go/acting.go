package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hashicorp/raft"
)

// actTimeout is that of calls that name none.
const actTimeout = 10 * time.Second

func (n *node) postApply(r *http.Request) (any, error) {
	data, err := body(r)
	if err != nil {
		return nil, err
	}
	extensions, err := hex.DecodeString(r.URL.Query().Get("extensions"))
	if err != nil {
		return nil, fmt.Errorf("%w: extensions: %v", errBadRequest, err)
	}
	timeout, err := seconds(r, "timeout", actTimeout)
	if err != nil {
		return nil, err
	}
	future := n.raft.ApplyLog(raft.Log{Data: data, Extensions: extensions}, timeout)
	if err := future.Error(); err != nil {
		return nil, err
	}
	if refusal, refused := future.Response().(error); refused {
		return nil, refusal
	}
	return map[string]any{"index": future.Index(), "response": future.Response()}, nil
}

// batch is the body of /applies: commands `id NUL (size zero bytes)`, all proposed at once.
type batch struct {
	IDs  []string `json:"ids"`
	Size int      `json:"size"`
}

// applied is the fate of one command of a batch.
type applied struct {
	ID       string `json:"id"`
	Index    uint64 `json:"index,omitempty"` // 0: it failed, and
	Error    string `json:"error,omitempty"`
	Outcome  string `json:"outcome,omitempty"` // says whether it may yet be applied
	Response any    `json:"response,omitempty"`
}

func command(id string, size int) []byte {
	data := make([]byte, len(id)+1+size)
	copy(data, id)
	return data
}

func (n *node) postApplies(r *http.Request) (any, error) {
	data, err := body(r)
	if err != nil {
		return nil, err
	}
	timeout, err := seconds(r, "timeout", actTimeout)
	if err != nil {
		return nil, err
	}
	var b batch
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("%w: %v", errBadRequest, err)
	}
	futures := make([]raft.ApplyFuture, len(b.IDs))
	for i, id := range b.IDs {
		futures[i] = n.raft.Apply(command(id, b.Size), timeout)
	}
	results := make([]applied, len(b.IDs))
	for i, future := range futures {
		if err := future.Error(); err != nil {
			f := fail(err)
			results[i] = applied{ID: b.IDs[i], Error: f.Error, Outcome: f.Outcome}
			continue
		}
		results[i] = applied{ID: b.IDs[i], Index: future.Index(), Response: future.Response()}
	}
	return map[string]any{"results": results}, nil
}

func (n *node) postBarrier(*http.Request) (any, error) {
	return done(n.raft.Barrier(actTimeout))
}

func (n *node) postVerify(*http.Request) (any, error) {
	return done(n.raft.VerifyLeader())
}

// postSnapshot takes a snapshot and tells its content's digest: replicas that applied the same write
// the same bytes.
func (n *node) postSnapshot(*http.Request) (any, error) {
	future := n.raft.Snapshot()
	if err := future.Error(); err != nil {
		return nil, err
	}
	meta, content, err := future.Open()
	if err != nil {
		return nil, err
	}
	defer content.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, content); err != nil {
		return nil, err
	}
	return map[string]any{
		"index": meta.Index, "size": meta.Size, "sha256": hex.EncodeToString(sum.Sum(nil)),
	}, nil
}

// postTransfer hands leadership to `id` at `address`, or to whom raft picks.
func (n *node) postTransfer(r *http.Request) (any, error) {
	query := r.URL.Query()
	if id := query.Get("id"); id != "" {
		return done(n.raft.LeadershipTransferToServer(
			raft.ServerID(id), raft.ServerAddress(query.Get("address"))))
	}
	return done(n.raft.LeadershipTransfer())
}

func done(future raft.Future) (any, error) {
	return map[string]any{}, future.Error()
}

type addServer func(raft.ServerID, raft.ServerAddress, uint64, time.Duration) raft.IndexFuture

func (n *node) postAddVoter(r *http.Request) (any, error) {
	return add(r, n.raft.AddVoter)
}

func (n *node) postAddNonvoter(r *http.Request) (any, error) {
	return add(r, n.raft.AddNonvoter)
}

func (n *node) postDemote(r *http.Request) (any, error) {
	return add(r, func(id raft.ServerID, _ raft.ServerAddress, prev uint64, t time.Duration) raft.IndexFuture {
		return n.raft.DemoteVoter(id, prev, t)
	})
}

func (n *node) postRemove(r *http.Request) (any, error) {
	return add(r, func(id raft.ServerID, _ raft.ServerAddress, prev uint64, t time.Duration) raft.IndexFuture {
		return n.raft.RemoveServer(id, prev, t)
	})
}

func add(r *http.Request, call addServer) (any, error) {
	prev, err := number(r, "prev", 0)
	if err != nil {
		return nil, err
	}
	query := r.URL.Query()
	future := call(raft.ServerID(query.Get("id")), raft.ServerAddress(query.Get("address")), prev, actTimeout)
	if err := future.Error(); err != nil {
		return nil, err
	}
	return map[string]any{"index": future.Index()}, nil
}

// postJoin asks the member at `via` with raft-http's own client.
func (n *node) postJoin(r *http.Request) (any, error) {
	via := raft.ServerAddress(r.URL.Query().Get("via"))
	return map[string]any{}, n.layer.Join(n.opts.raft.LocalID, via, joinTimeout)
}

func (n *node) postLeave(r *http.Request) (any, error) {
	via := raft.ServerAddress(r.URL.Query().Get("via"))
	return map[string]any{}, n.layer.Leave(n.opts.raft.LocalID, via, joinTimeout)
}
