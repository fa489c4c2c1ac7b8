package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// options is the command line. The names after `raft` are hashicorp/raft's own.
type options struct {
	id, address, listen, path, dataDir, join string
	bootstrap, newTimeFormat, noSync, count  bool
	replay, replayFrom                       string
	blobBytes                                int64
	timeout                                  time.Duration
	raft                                     *raft.Config
}

func parseOptions() *options {
	conf := raft.DefaultConfig()
	o := &options{raft: conf}
	flag.StringVar(&o.id, "id", "", "server id")
	flag.StringVar(&o.address, "address", "", "HOST:PORT to listen on, as the members know it")
	flag.StringVar(&o.listen, "listen", "", "HOST:PORT to listen on behind a relay, where it is not the address")
	flag.StringVar(&o.path, "path", "/raft", "path of the endpoint")
	flag.StringVar(&o.dataDir, "data-dir", "", "bolt log and snapshot files; empty keeps all in memory")
	flag.StringVar(&o.join, "join", "", "HOST:PORT of a member to ask, with raft-http's Layer.Join")
	flag.BoolVar(&o.bootstrap, "bootstrap", false, "begin a cluster with this server alone, unless there is state")
	flag.BoolVar(&o.newTimeFormat, "new-time-format", false, "NetworkTransportConfig.MsgpackUseNewTimeFormat")
	flag.BoolVar(&o.noSync, "no-sync", false, "bolt without fsync")
	flag.BoolVar(&o.count, "count", false, "a state machine that only counts, for benchmarks")
	flag.Int64Var(&o.blobBytes, "blob-bytes", 0, "a state machine of that size that holds nothing, for benchmarks")
	flag.StringVar(&o.replay, "replay", "", "only apply the entries of this file (interop/README.md), and end")
	flag.StringVar(&o.replayFrom, "replay-from", "", "snapshot to begin -replay from")
	flag.DurationVar(&o.timeout, "timeout", 10*time.Second, "of the transport")

	flag.DurationVar(&conf.HeartbeatTimeout, "heartbeat-timeout", conf.HeartbeatTimeout, "")
	flag.DurationVar(&conf.ElectionTimeout, "election-timeout", conf.ElectionTimeout, "")
	flag.DurationVar(&conf.LeaderLeaseTimeout, "leader-lease-timeout", conf.LeaderLeaseTimeout, "")
	flag.DurationVar(&conf.CommitTimeout, "commit-timeout", conf.CommitTimeout, "")
	flag.DurationVar(&conf.SnapshotInterval, "snapshot-interval", conf.SnapshotInterval, "")
	flag.Uint64Var(&conf.SnapshotThreshold, "snapshot-threshold", conf.SnapshotThreshold, "")
	flag.Uint64Var(&conf.TrailingLogs, "trailing-logs", conf.TrailingLogs, "")
	flag.IntVar(&conf.MaxAppendEntries, "max-append-entries", conf.MaxAppendEntries, "")
	flag.BoolVar(&conf.BatchApplyCh, "batch-apply-ch", conf.BatchApplyCh, "")
	flag.BoolVar(&conf.PreVoteDisabled, "pre-vote-disabled", conf.PreVoteDisabled, "")
	flag.BoolVar(&conf.ShutdownOnRemove, "shutdown-on-remove", false, "")
	flag.StringVar(&conf.LogLevel, "log-level", "INFO", "")
	version := flag.Int("protocol-version", int(conf.ProtocolVersion), "")
	flag.Parse()

	conf.LocalID = raft.ServerID(o.id)
	conf.ProtocolVersion = raft.ProtocolVersion(*version)
	conf.LogOutput = os.Stderr
	if o.listen == "" {
		o.listen = o.address
	}
	if o.replay == "" && (o.id == "" || o.address == "") || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "rafthttp-interop: -id and -address are needed, and nothing but flags")
		flag.Usage()
		os.Exit(2)
	}
	return o
}
