package litestream_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.com/litestream"
)

func init() { childRoles["idle"] = idleChild }

// idleChild opens databases, lets them settle, and tells what they cost and
// change while nobody uses them.
func idleChild(args []string) error {
	dir := args[0]
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	window, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	var dbs []*litestream.DB
	var calls atomic.Int64
	for i := range n {
		db, host, err := openIdle(filepath.Join(dir, strconv.Itoa(i)), &calls, i)
		if err != nil {
			return err
		}
		defer host.Close()
		dbs = append(dbs, db)
	}

	// Settled: all is replicated and, for a second, nothing changed.
	files, seen, since := idleFiles(dbs), calls.Load(), time.Now()
	if err := childAwaits("databases settle", func() bool {
		now, count := idleFiles(dbs), calls.Load()
		if !maps.Equal(now, files) || count != seen {
			files, seen, since = now, count, time.Now()
		}
		for _, db := range dbs {
			pos := db.Pos()
			noted, err := os.ReadFile(db.PositionPath()) // which the monitor does last
			if pos.IsZero() || db.Replicas[0].Pos() != pos || err != nil || string(noted) != pos.String()+"\n" {
				return false
			}
		}
		return time.Since(since) > time.Second
	}); err != nil {
		return err
	}

	before, err := processorTime()
	if err != nil {
		return err
	}
	time.Sleep(window) // nothing happens: that is measured
	after, err := processorTime()
	if err != nil {
		return err
	}
	for name, state := range idleFiles(dbs) {
		if state != files[name] {
			tell("changed %s: %v, was %v", name, state, files[name])
		}
	}
	tell("figures %d %d", (after - before).Microseconds(), calls.Load()-seen)
	var errs []error
	for _, db := range dbs {
		errs = append(errs, db.Close())
	}
	return errors.Join(errs...)
}

// openIdle opens a database that its host has just used. Of four hosts one has
// no reader open, one has a reader of the newest commit, one of an older one,
// and one a reader from before everything was checkpointed.
func openIdle(dir string, calls *atomic.Int64, i int) (*litestream.DB, *sql.DB, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, "db")
	host, err := childHost(path)
	if err != nil {
		return nil, nil, err
	}
	read := func() error {
		tx, err := host.Begin()
		if err != nil {
			return err
		}
		var n int
		return tx.QueryRow("SELECT count(*) FROM t").Scan(&n) // and stays open
	}
	steps := []func() error{
		func() error { _, err := host.Exec("CREATE TABLE t (n)"); return err },
		nil,
		func() error { _, err := host.Exec("INSERT INTO t VALUES (1)"); return err },
		nil,
		func() error { _, err := host.Exec("PRAGMA wal_checkpoint(PASSIVE)"); return err },
		nil,
	}
	if i%4 > 0 {
		steps[2*(i%4)-1] = read
	}
	for _, step := range steps {
		if step != nil {
			if err := step(); err != nil {
				return nil, nil, err
			}
		}
	}
	db := childDB(path, filepath.Join(dir, "replica"), io.Discard)
	db.CheckpointInterval = 200 * time.Millisecond // so that it comes before the databases have settled
	r := litestream.NewReplica(db, "counted", countingClient{db.Replicas[0].Client(), calls})
	r.Logger = db.Logger
	r.Retention = 0 // the first check comes at random, some time after the start
	db.Replicas = []*litestream.Replica{r}
	if err := db.Open(); err != nil {
		return nil, nil, err
	}
	_, err = host.Exec("INSERT INTO t VALUES (2)")
	return db, host, err
}

// idleFiles returns size and modification time of each database and WAL.
func idleFiles(dbs []*litestream.DB) map[string]string {
	files := make(map[string]string)
	for _, db := range dbs {
		for _, name := range []string{db.Path(), db.WALPath()} {
			info, err := os.Stat(name)
			if err != nil {
				files[name] = err.Error()
				continue
			}
			files[name] = fmt.Sprintf("%d bytes of %d", info.Size(), info.ModTime().UnixNano())
		}
	}
	return files
}

// processorTime returns how long this process has kept a processor busy.
func processorTime() (time.Duration, error) {
	var ru syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), err
}

// An idle database is not written to, costs no processor time, and asks its
// replica nothing.
//
// PITFALLS row 29, row 42
func TestIdleDatabasesDoNothing(t *testing.T) {
	t.Parallel()
	window := 6 * time.Second // holds at least one poll
	if testing.Short() {
		window = 3 * time.Second
	}
	const n = 20
	c := startChild(t, "idle", t.TempDir(), strconv.Itoa(n), window.String())
	var micros, calls int64
	var figures string
	for c.stdout.Scan() {
		if _, err := fmt.Sscanf(c.stdout.Text(), "figures %d %d", &micros, &calls); err == nil {
			figures = c.stdout.Text()
			continue
		}
		t.Error(c.stdout.Text())
	}
	c.mustEnd(t)
	if figures == "" {
		t.Fatalf("the child process told no figures\n%s", &c.stderr)
	}
	cpu := time.Duration(micros) * time.Microsecond
	t.Logf("%d idle databases: %s of processor time in %s, %d client calls", n, cpu, window, calls)
	if cpu > window/20 {
		t.Errorf("%d idle databases cost %s of processor time in %s", n, cpu, window)
	}
	if calls != 0 {
		t.Errorf("%d client calls while idle", calls)
	}
}

// countingClient counts the calls of a client.
type countingClient struct {
	c     litestream.ReplicaClient
	calls *atomic.Int64
}

var _ litestream.ReplicaClient = countingClient{}

func (c countingClient) count() litestream.ReplicaClient { c.calls.Add(1); return c.c }

func (c countingClient) Type() string { return c.c.Type() }

func (c countingClient) Generations(ctx context.Context) ([]string, error) {
	return c.count().Generations(ctx)
}

func (c countingClient) DeleteGeneration(ctx context.Context, generation string) error {
	return c.count().DeleteGeneration(ctx, generation)
}

func (c countingClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	return c.count().Snapshots(ctx, generation)
}

func (c countingClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	return c.count().WriteSnapshot(ctx, generation, index, r)
}

func (c countingClient) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	return c.count().DeleteSnapshot(ctx, generation, index)
}

func (c countingClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	return c.count().SnapshotReader(ctx, generation, index)
}

func (c countingClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	return c.count().WALSegments(ctx, generation)
}

func (c countingClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	return c.count().WriteWALSegment(ctx, pos, r)
}

func (c countingClient) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	return c.count().DeleteWALSegments(ctx, a)
}

func (c countingClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	return c.count().WALSegmentReader(ctx, pos)
}
