package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/streamhttp"
)

// runPrimary writes rows and serves the stream until ctx ends, or the commands.
func runPrimary(ctx context.Context, cfg config, commands <-chan string, out io.Writer) (err error) {
	path, err := cfg.path()
	if err != nil {
		return err
	}
	db := litestream.NewDB(path)
	db.Replicas = append(db.Replicas,
		litestream.NewReplica(db, "file", fileclient.NewFileReplicaClient(cfg.replica)))
	if err := db.Open(); err != nil {
		return err
	}
	defer func() { // the last commits reach the replica
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, db.Shutdown(stopCtx))
	}()
	host, err := openTicks(path, false)
	if err != nil {
		return err
	}
	defer host.Close() // before db.Shutdown
	if err := createTicks(ctx, host); err != nil {
		return err
	}
	// A primary that was replaced learns it here, before it serves anybody.
	if err := db.SyncAndWait(ctx); errors.Is(err, litestream.ErrReplicaMoved) {
		return fmt.Errorf("another one took over: %w", err)
	} else if err != nil {
		return err
	}

	handler := streamhttp.NewHandler(func(wanted string) (litestream.StreamClient, bool) {
		return db, wanted == name
	})
	handler.Authorize = streamhttp.RequireBearerToken(cfg.token)
	mux := http.NewServeMux()
	mux.Handle("/stream", handler)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	server.RegisterOnShutdown(handler.Close)
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cfg.addr)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, server.Shutdown(stopCtx))
		if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
			err = errors.Join(err, serveErr)
		}
	}()

	n, _, err := lastTick(ctx, host)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "primary with %d rows serves http://%s/stream\n", n, ln.Addr())
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-commands:
			if !ok {
				return nil
			}
		case <-ticker.C:
			if err := addTick(ctx, host); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
