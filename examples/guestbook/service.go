package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// databaseName is the database's file in the data directory.
const databaseName = "guestbook.db"

// service is a running guestbook.
type service struct {
	url    string // where it is served, such as http://127.0.0.1:8080/
	db     *litestream.DB
	store  *store
	server *http.Server

	served   chan struct{} // closed when the server has stopped serving
	serveErr error         // why, read after served is closed; nil after stop
}

// start restores the database if it is gone, begins to stream it, and serves
// the guestbook. The caller stops the service.
func start(ctx context.Context, cfg config) (_ *service, err error) {
	if err := os.MkdirAll(cfg.data, 0o700); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	path := filepath.Join(cfg.data, databaseName)

	db := litestream.NewDB(path)
	db.Replicas = append(db.Replicas,
		litestream.NewReplica(db, "file", fileclient.NewFileReplicaClient(cfg.replica)))
	if err := db.EnsureExists(ctx); err != nil {
		return nil, fmt.Errorf("restore database: %w", err)
	}
	if err := db.Open(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s := &service{db: db, served: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeDatabase(context.WithoutCancel(ctx)))
		}
	}()

	if s.store, err = openStore(ctx, path); err != nil {
		return nil, err
	}
	handler, err := newHandler(s.store, db.Stats)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cfg.addr)
	if err != nil {
		return nil, err
	}
	s.url = "http://" + ln.Addr().String() + "/"
	s.server = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
	}
	go s.serve(ln) // joined by stop
	return s, nil
}

func (s *service) serve(ln net.Listener) {
	defer close(s.served)
	if err := s.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		s.serveErr = fmt.Errorf("serve: %w", err)
	}
}

// stop lets the requests in flight end, then closes the database. When it
// returns nil the replica holds every entry.
func (s *service) stop(ctx context.Context) error {
	err := s.server.Shutdown(ctx)
	if err != nil { // out of time: cut the connections
		err = errors.Join(fmt.Errorf("stop server: %w", err), s.server.Close())
	}
	<-s.served
	return errors.Join(err, s.closeDatabase(ctx))
}

// closeDatabase closes the application's own connections first: the last one
// to close would otherwise delete the WAL, and with it the place from which
// the next start goes on.
func (s *service) closeDatabase(ctx context.Context) error {
	var errs []error
	if s.store != nil {
		errs = append(errs, s.store.close())
	}
	if err := s.db.Shutdown(ctx); err != nil {
		errs = append(errs, fmt.Errorf("shut down replication: %w", err))
	}
	return errors.Join(errs...)
}
