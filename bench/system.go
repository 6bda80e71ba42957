package main

import (
	"context"
	"io"
	"log"
	"log/slog"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	peer "github.com/benbjohnson/litestream"
	peerfile "github.com/benbjohnson/litestream/file"
)

// The names of what is measured.
const (
	alone     = "alone"   // the program without replication
	ours      = "ours"    // this library
	theirs    = "v0.5.16" // Litestream v0.5.16, in the same program
	sqliteAPI = "sqlite"  // SQLite's backup API
	limit     = "limit"   // what the machine can do at best
)

// stream is one database that is being replicated.
type stream interface {
	// Sync brings everything committed to the replica and returns when it is
	// there.
	Sync(ctx context.Context) error

	// Restart lets the WAL restart.
	Restart(ctx context.Context) error

	// Replicated names the position up to which the replica is complete.
	Replicated() string

	Close(ctx context.Context) error
}

// system is a library that replicates.
type system struct {
	// open begins to replicate the database at path to a directory, at default
	// settings. With manual, nothing happens but by calls of Sync and Restart.
	open func(path, replica string, manual bool) (stream, error)

	// restore builds the newest state of the replica at the path target.
	restore func(ctx context.Context, replica, target string) error
}

var systems = map[string]system{
	ours:   {openOurs, restoreOurs},
	theirs: {openTheirs, restoreTheirs},
}

type ourStream struct{ db *litestream.DB }

func openOurs(path, replica string, manual bool) (stream, error) {
	db := litestream.NewDB(path)
	db.Logger = log.New(io.Discard, "", 0)
	r := litestream.NewReplica(db, "", fileclient.NewFileReplicaClient(replica))
	r.Logger = db.Logger
	r.MonitorEnabled = !manual
	db.Replicas = append(db.Replicas, r)
	if err := db.Open(); err != nil {
		return nil, err
	}
	return ourStream{db}, nil
}

func (s ourStream) Sync(ctx context.Context) error { return s.db.SyncAndWait(ctx) }
func (s ourStream) Restart(ctx context.Context) error {
	return s.db.Checkpoint(ctx, litestream.CheckpointModeRestart)
}
func (s ourStream) Replicated() string              { return s.db.Replicas[0].Pos().String() }
func (s ourStream) Close(ctx context.Context) error { return s.db.Shutdown(ctx) }

func restoreOurs(ctx context.Context, replica, target string) error {
	opt := litestream.NewRestoreOptions()
	opt.Logger = log.New(io.Discard, "", 0)
	_, err := litestream.RestoreLatest(ctx, fileclient.NewFileReplicaClient(replica), target, opt)
	return err
}

type theirStream struct{ db *peer.DB }

func openTheirs(path, replica string, manual bool) (stream, error) {
	db := peer.NewDB(path)
	client := peerfile.NewReplicaClient(replica)
	db.Replica = peer.NewReplicaWithClient(db, client)
	client.Replica = db.Replica
	db.SetLogger(slog.New(slog.DiscardHandler))
	client.SetLogger(slog.New(slog.DiscardHandler))
	if manual {
		db.MonitorInterval = 0
		db.Replica.MonitorEnabled = false
	}
	if err := db.Open(); err != nil {
		return nil, err
	}
	return theirStream{db}, nil
}

func (s theirStream) Sync(ctx context.Context) error {
	if err := s.db.Sync(ctx); err != nil {
		return err
	}
	return s.db.Replica.Sync(ctx)
}
func (s theirStream) Restart(ctx context.Context) error {
	return s.db.Checkpoint(ctx, peer.CheckpointModePassive)
}
func (s theirStream) Replicated() string              { return s.db.Replica.Pos().String() }
func (s theirStream) Close(ctx context.Context) error { return s.db.Close(ctx) }

func restoreTheirs(ctx context.Context, replica, target string) error {
	r := peer.NewReplicaWithClient(nil, peerfile.NewReplicaClient(replica))
	opt := peer.NewRestoreOptions()
	opt.OutputPath = target
	return r.Restore(ctx, opt)
}
