package litestream_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/streamhttp"
)

// What was not constructed as it must be, or has a nil where something is
// needed, returns errors.
func TestNil_ObjectsReturnErrors(t *testing.T) {
	limit, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	writer := litestream.LogWriter
	t.Cleanup(func() { litestream.LogWriter = writer })
	litestream.LogWriter = io.Discard
	withNil := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
	withNil.Replicas = append(withNil.Replicas, nil)
	for _, v := range []any{
		&litestream.DB{}, &litestream.Replica{}, &litestream.Server{}, withNil,
		litestream.NewReplica(&litestream.DB{}, "x", fileclient.NewFileReplicaClient(t.TempDir())),
		litestream.NewReplica(nil, "", (*fileclient.FileReplicaClient)(nil)),
	} {
		errs := callAll(t, limit, v)
		for _, name := range []string{"Sync", "Snapshot", "SyncAndWait"} {
			if err, ok := errs[name]; !ok && reflect.ValueOf(v).MethodByName(name).IsValid() || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%T.%s: %v", v, name, err)
			}
		}
	}
	if got := withNil.Stats().Replicas; len(got) != 1 || got[0] != (litestream.ReplicaStats{}) {
		t.Errorf("stats of a nil replica: %+v", got)
	}
	for name, open := range map[string]func() error{
		"zero DB":     (&litestream.DB{}).Open,
		"nil replica": withNil.Open,
		"nil client": func() error {
			db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
			db.Replicas = append(db.Replicas, litestream.NewReplica(db, "x", (*fileclient.FileReplicaClient)(nil)))
			return db.Open()
		},
		"nil upstream": func() error {
			db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
			db.StreamClient = (*streamhttp.Client)(nil)
			return db.Open()
		},
	} {
		if err := open(); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	mustErrorContains(t, litestream.NewDB(filepath.Join(t.TempDir(), "db")).WithFile(nil), "no function")
	server := litestream.NewServer()
	if err := server.Open(); err != nil {
		t.Fatal(err)
	}
	mustErrorContains(t, server.Watch("x", nil), "watch x: no function")
}

func mustErrorContains(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("error %v, want one that contains %q", err, part)
	}
}

// Every function that takes a ReplicaClient returns an error for a nil one.
func TestNil_ClientIsAnError(t *testing.T) {
	const generation = "0123456789abcdef"
	path := filepath.Join(t.TempDir(), "restored")
	for _, fn := range []any{
		litestream.FindLatestGeneration, litestream.ReplicaClientTimeBounds, litestream.GenerationTimeBounds,
		litestream.SnapshotTimeBounds, litestream.WALTimeBounds, litestream.FindMaxIndexByGeneration,
		litestream.FindMaxSnapshotIndexByGeneration, litestream.FindMaxWALIndexByGeneration,
		litestream.FindSnapshotForIndex, litestream.FindIndexByTimestamp, litestream.PlanRestore,
		litestream.RestoreLatest, litestream.RestoreAt, litestream.Restore, litestream.RestoreSnapshot,
		func(ctx context.Context, client litestream.ReplicaClient) error {
			_, _, err := litestream.NewWALDownloader(client, path, generation, 0, 0).Next(ctx)
			return err
		},
	} {
		for _, client := range []litestream.ReplicaClient{nil, (*fileclient.FileReplicaClient)(nil)} {
			rv := reflect.ValueOf(fn)
			args := make([]reflect.Value, rv.Type().NumIn())
			for i := range args {
				args[i] = argument(ctx, rv.Type().In(i))
			}
			args[1] = reflect.ValueOf(&client).Elem()
			out := rv.Call(args)
			err, _ := out[len(out)-1].Interface().(error)
			if err == nil || !strings.Contains(err.Error(), "no replica client") {
				t.Errorf("%s: %v", runtime.FuncForPC(rv.Pointer()).Name(), err)
			}
		}
	}
}

// Nil is silence, for loggers that the host did not set and for Tracef.
func TestNil_LogWriterAndTracef(t *testing.T) {
	writer, trace := litestream.LogWriter, litestream.Tracef
	t.Cleanup(func() { litestream.LogWriter, litestream.Tracef = writer, trace })
	litestream.LogWriter, litestream.Tracef = nil, nil
	dir := t.TempDir()
	db := litestream.NewDB(filepath.Join(dir, "db"))
	client := fileclient.NewFileReplicaClient(filepath.Join(dir, "replica"))
	r := litestream.NewReplica(db, "", client)
	if w := r.Logger.Writer(); w != io.Discard || db.Logger.Writer() != w {
		t.Errorf("the loggers write to %v and %v", w, db.Logger.Writer())
	}
	db.Replicas = append(db.Replicas, r)
	host := openHost(t, db.Path())
	mustExec(t, host, "CREATE TABLE t (x)")
	mustOpen(t, db)
	writeFile(t, filepath.Join(db.MetaPath(), "lineage"), []byte("rubbish, which Tracef is told of\n"))
	mustSync(t, db)
	if err := errors.Join(host.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := litestream.RestoreLatest(ctx, client, filepath.Join(dir, "restored"), litestream.RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
}
