// Command rafthttp-interop is one real hashicorp/raft server over the HTTP upgrade of raft-http,
// with an admin API on the same port. The tests of rafthttp put it into clusters with Python.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "rafthttp-interop:", err)
		os.Exit(1)
	}
}

func run() error {
	opts := parseOptions()
	if opts.replay != "" {
		return replay(opts.replay, opts.replayFrom, os.Stdout)
	}
	listener, err := net.Listen("tcp", opts.listen)
	if err != nil {
		return err
	}
	node, err := startNode(opts)
	if err != nil {
		listener.Close()
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(opts.path, node.handler)
	node.addAdmin(mux)
	server := &http.Server{Handler: mux}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if opts.join != "" {
		// The members dial back before they answer: this must come after the listener.
		go node.joinInBackground(opts.join)
	}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	select {
	case err := <-served:
		if !errors.Is(err, http.ErrServerClosed) {
			return err
		}
	case <-signals:
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err = node.stop()
	server.Shutdown(ctx)
	return err
}
