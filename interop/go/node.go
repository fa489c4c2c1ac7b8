package main

import (
	"errors"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	rafthttp "github.com/CanonicalLtd/raft-http"
	raftmembership "github.com/CanonicalLtd/raft-membership"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// joinTimeout bounds one Layer.Join or Layer.Leave.
const joinTimeout = 20 * time.Second

// node is one server with everything it stands on.
type node struct {
	opts      *options
	handler   *rafthttp.Handler
	layer     *rafthttp.Layer
	transport *raft.NetworkTransport
	raft      *raft.Raft
	logs      raft.LogStore
	closer    io.Closer
	fsm       *ledger
}

type stores struct {
	logs      raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	closer    io.Closer
}

// address is a net.Addr that stays what the command line said, byte for byte.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

func openStores(o *options) (*stores, error) {
	if o.dataDir == "" {
		memory := raft.NewInmemStore()
		return &stores{memory, memory, raft.NewInmemSnapshotStore(), nil}, nil
	}
	if err := os.MkdirAll(o.dataDir, 0o755); err != nil {
		return nil, err
	}
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path:                    filepath.Join(o.dataDir, "raft.db"),
		NoSync:                  o.noSync,
		MsgpackUseNewTimeFormat: o.newTimeFormat,
	})
	if err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStore(o.dataDir, 2, os.Stderr)
	if err != nil {
		bolt.Close()
		return nil, err
	}
	return &stores{bolt, bolt, snapshots, bolt}, nil
}

func startNode(o *options) (*node, error) {
	s, err := openStores(o)
	if err != nil {
		return nil, err
	}
	logger := log.New(os.Stderr, "", log.LstdFlags|log.Lmicroseconds)
	handler := rafthttp.NewHandlerWithLogger(logger)
	layer := rafthttp.NewLayer(o.path, address(o.address), handler, rafthttp.NewDialTCP())
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  layer,
		MaxPool:                 3,
		Timeout:                 o.timeout,
		MsgpackUseNewTimeFormat: o.newTimeFormat,
		Logger: hclog.New(&hclog.LoggerOptions{
			Name: "raft-net", Output: os.Stderr, Level: hclog.LevelFromString(o.raft.LogLevel),
		}),
	})
	n := &node{
		opts: o, handler: handler, layer: layer, transport: transport,
		logs: s.logs, closer: s.closer, fsm: newLedger(),
	}
	if o.bootstrap {
		alone := raft.Configuration{Servers: []raft.Server{
			{ID: o.raft.LocalID, Address: raft.ServerAddress(o.address)},
		}}
		err := raft.BootstrapCluster(o.raft, s.logs, s.stable, s.snapshots, transport, alone)
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return nil, err
		}
	}
	var fsm raft.FSM = newSessionFSM(n.fsm)
	if o.count {
		fsm = &counter{}
	}
	if o.blobBytes > 0 {
		fsm = &blob{size: o.blobBytes}
	}
	n.raft, err = raft.NewRaft(o.raft, fsm, s.logs, s.stable, s.snapshots, transport)
	if err != nil {
		return nil, err
	}
	go raftmembership.HandleChangeRequests(n.raft, handler.Requests())
	return n, nil
}

func (n *node) joinInBackground(target string) {
	err := n.layer.Join(n.opts.raft.LocalID, raft.ServerAddress(target), joinTimeout)
	if err != nil {
		log.Printf("[ERR] join through %s: %v", target, err)
	}
}

// stop follows the closing chain of raft-http: raft, transport (which closes layer and handler), stores.
func (n *node) stop() error {
	err := n.raft.Shutdown().Error()
	n.transport.CloseStreams()
	if e := n.transport.Close(); err == nil {
		err = e
	}
	if n.closer != nil {
		if e := n.closer.Close(); err == nil {
			err = e
		}
	}
	return err
}
