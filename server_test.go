package litestream_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/replicatest"

	"golang.org/x/sync/errgroup"
)

// serverDatabases is for TestServer_ManyDatabases. The full run is
// go test -run ManyDatabases -databases 1000 -v
var serverDatabases = flag.Int("databases", 200, "databases that one server watches")

// newServer returns an open server and a directory. The cleanup closes the
// server before the directory goes.
func newServer(t testing.TB) (_ *litestream.Server, dir string) {
	t.Helper()
	dir = t.TempDir()
	s := litestream.NewServer()
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close server in cleanup: %v", err)
		}
		if err := filepath.WalkDir(dir, func(path string, ent fs.DirEntry, err error) error {
			if err == nil && ent.IsDir() && strings.HasSuffix(path, litestream.MetaDirSuffix) {
				checkReplicaOf(t, tenantClient(strings.TrimSuffix(path, litestream.MetaDirSuffix)), checkMeta(t, path))
				return fs.SkipDir
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	})
	return s, dir
}

// tenant constructs a DB with one silent replica beside it.
func tenant(path string) (*litestream.DB, error) {
	silent := log.New(io.Discard, "", 0)
	db := litestream.NewDB(path)
	db.Logger = silent
	r := litestream.NewReplica(db, "file", tenantClient(path))
	r.Logger = silent
	db.Replicas = append(db.Replicas, r)
	return db, nil
}

// tenantClient returns the client of the replica beside the file that path
// leads to.
func tenantClient(path string) *fileclient.FileReplicaClient {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	return fileclient.NewFileReplicaClient(path + "-replica")
}

func mustWatch(t testing.TB, s *litestream.Server, path string) *litestream.DB {
	t.Helper()
	if err := s.Watch(path, tenant); err != nil {
		t.Fatal(err)
	}
	db := s.DB(path)
	if db == nil {
		t.Fatalf("no DB at %s after Watch", path)
	}
	return db
}

// within fails the test if fn has not returned after a while.
func within(t testing.TB, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not return", what)
	}
}

func TestServer_WatchStreamsAndUnwatchCloses(t *testing.T) {
	s, dir := newServer(t)
	path := filepath.Join(dir, "db")
	host := openHost(t, path)
	mustExec(t, host, `CREATE TABLE t (x)`)
	db := mustWatch(t, s, path)
	mustExec(t, host, `INSERT INTO t VALUES (1)`)
	if err := s.Unwatch(path); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, mustRestore(t, tenantClient(path))); n != 1 {
		t.Errorf("restored %d rows, want the 1 that was committed before Unwatch", n)
	}
	mustErrorIs(t, db.Sync(ctx), litestream.ErrDBClosed)
	if s.DB(path) != nil || len(s.DBs()) != 0 {
		t.Error("the server still has the database")
	}
	if err := s.Unwatch(path); err != nil {
		t.Errorf("unwatch of what is not watched: %v", err)
	}
	generation := db.Pos().Generation
	if db = mustWatch(t, s, path); db.Pos().Generation != generation {
		t.Error("watched again, the database begins a new generation")
	}
}

func TestServer_DBsAreSortedByPath(t *testing.T) {
	s, dir := newServer(t)
	for _, name := range []string{"c", "a", "b"} {
		mustWatch(t, s, filepath.Join(dir, name))
	}
	var names []string
	for _, db := range s.DBs() {
		names = append(names, filepath.Base(db.Path()))
	}
	if got := strings.Join(names, ""); got != "abc" {
		t.Errorf("databases are %q", got)
	}
}

// One file has many names. PITFALLS row 44
func TestServer_NamesOfOneFileAreOneDatabase(t *testing.T) {
	dir := t.TempDir()
	mustMkdir(t, filepath.Join(dir, "real"))
	for link, target := range map[string]string{"dirlink": "real", "real/link": "db", "abs": filepath.Join(dir, "real", "db")} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Skip(err) // Windows without the privilege
		}
	}
	t.Chdir(dir)
	names := []string{"real/db", "./real/../real/db", "dirlink/db", "dirlink/link", "abs", filepath.Join(dir, "real", "db")}
	for _, exists := range []bool{false, true} {
		for i, name := range names {
			t.Run(fmt.Sprintf("%v/%s", exists, strings.ReplaceAll(name, "/", "_")), func(t *testing.T) {
				if exists {
					mustExec(t, openHost(t, "real/db"), `CREATE TABLE IF NOT EXISTS t (x)`)
				}
				s, _ := newServer(t)
				db := mustWatch(t, s, name)
				if db.Path() != name {
					t.Errorf("path is %s, want %s as given", db.Path(), name)
				}
				for _, other := range names {
					if s.DB(other) != db {
						t.Errorf("%s is not found as %s", name, other)
					}
					called := false
					err := s.Watch(other, func(path string) (*litestream.DB, error) { called = true; return tenant(path) })
					if err == nil || called || !strings.Contains(err.Error(), other) {
						t.Errorf("%s watched again as %s: %v (constructed: %v)", name, other, err, called)
					}
				}
				if err := s.Unwatch(names[(i+1)%len(names)]); err != nil {
					t.Error(err)
				}
				mustErrorIs(t, db.Sync(ctx), litestream.ErrDBClosed)
			})
		}
	}
}

// A link that has another target now still names the database that was watched
// by it, unless it names another that is watched.
func TestServer_UnwatchAfterTheLinkMoved(t *testing.T) {
	s, dir := newServer(t)
	link := filepath.Join(dir, "link")
	point := func(target string) {
		t.Helper()
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.Symlink(target, link); err != nil {
			t.Skip(err) // Windows without the privilege
		}
	}
	watch := func(target string) *litestream.DB {
		t.Helper()
		mustExec(t, openHost(t, filepath.Join(dir, target)), "CREATE TABLE t (x)")
		point(target)
		return mustWatch(t, s, link)
	}
	a, b := watch("a"), watch("b")
	for _, tt := range []struct{ closed, open *litestream.DB }{{b, a}, {a, nil}} {
		if err := s.Unwatch(link); err != nil {
			t.Error(err)
		}
		mustErrorIs(t, tt.closed.Sync(ctx), litestream.ErrDBClosed)
		if tt.open != nil {
			if err := tt.open.Sync(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	if dbs := s.DBs(); len(dbs) != 0 {
		t.Errorf("%d databases are left", len(dbs))
	}
}

// DB.Open makes directories: the path must mean the same before and after.
// PITFALLS row 44
func TestServer_FindsDatabaseInDirectoryThatOpenMade(t *testing.T) {
	s, dir := newServer(t)
	mustMkdir(t, filepath.Join(dir, "real"))
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Skip(err)
	}
	path := filepath.Join(dir, "link", "tenants", "1", "db")
	db := mustWatch(t, s, path)
	if err := s.Unwatch(path); err != nil {
		t.Fatal(err)
	}
	mustErrorIs(t, db.Sync(ctx), litestream.ErrDBClosed)
}

// PITFALLS rows 44 and 45
func TestServer_CircleOfLinksIsAnError(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, err := range []error{os.Symlink("b", a), os.Symlink(a, b)} {
		if err != nil {
			t.Skip(err)
		}
	}
	s := litestream.NewServer()
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	watched := false
	for _, path := range []string{a, filepath.Join(b, "db")} {
		if s.DB(path) != nil {
			t.Error("a database")
		}
		err := s.Watch(path, tenant)
		if err == nil {
			watched, err = true, s.DB(path).Sync(ctx)
		}
		if err == nil {
			t.Errorf("%s is watched, and is fine", path)
		}
	}
	if err := s.Close(); watched && err == nil {
		t.Error("the final capture was a success")
	}
}

func TestServer_WatchReportsWhatTheConstructorDid(t *testing.T) {
	s, dir := newServer(t)
	path := filepath.Join(dir, "db")
	broken := errors.New("broken")
	for name, fn := range map[string]func(string) (*litestream.DB, error){
		"broken":      func(string) (*litestream.DB, error) { return nil, broken },
		"constructed": func(string) (*litestream.DB, error) { return nil, nil },
		"other":       func(string) (*litestream.DB, error) { return tenant(filepath.Join(dir, "other")) },
		"MinCheckpoin": func(path string) (*litestream.DB, error) {
			db, _ := tenant(path)
			db.MinCheckpointPageN = 0
			return db, nil
		},
	} {
		err := s.Watch(path, fn)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error is %v", name, err)
		}
		if name == "broken" && !errors.Is(err, broken) {
			t.Errorf("%v does not wrap the constructor's error", err)
		}
		if s.DB(path) != nil || len(s.DBs()) != 0 {
			t.Errorf("%s: the server has the database", name)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_ = s.Watch(path, func(string) (*litestream.DB, error) { panic("in the host's code") })
	}()
	mustWatch(t, s, path) // all failures left the path free
}

// A second manager is reported as such.
func TestServer_WatchOfManagedDatabaseFails(t *testing.T) {
	first, dir := newServer(t)
	path := filepath.Join(dir, "db")
	mustWatch(t, first, path)
	s, _ := newServer(t)
	mustErrorIs(t, s.Watch(path, tenant), litestream.ErrDatabaseLocked)
	if s.DB(path) != nil {
		t.Error("the second server has the database")
	}
}

// PITFALLS row 45
func TestServer_UseBeforeOpenAndAfterClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := litestream.NewServer()
	unusable := func(when string) {
		t.Helper()
		called := false
		err := s.Watch(path, func(path string) (*litestream.DB, error) { called = true; return tenant(path) })
		if mustErrorIs(t, err, litestream.ErrServerClosed); called {
			t.Errorf("%s: constructor was called", when)
		}
		if s.DB(path) != nil || len(s.DBs()) != 0 {
			t.Errorf("%s: a database", when)
		}
		if err := s.Unwatch(path); err != nil {
			t.Errorf("%s: unwatch: %v", when, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: close: %v", when, err)
		}
	}
	unusable("before Open")
	for range 2 {
		if err := s.Open(); err != nil {
			t.Fatal(err)
		}
		if err := s.Open(); err == nil {
			t.Error("opened twice")
		}
		db := mustWatch(t, s, path)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		mustErrorIs(t, db.Sync(ctx), litestream.ErrDBClosed)
		unusable("after Close")
	}
}

// A constructor may restore from far away, and Close may wait for an upload:
// neither holds up the others.
func TestServer_SlowDatabaseHoldsUpNoOther(t *testing.T) {
	s, dir := newServer(t)
	quick, slow := filepath.Join(dir, "quick"), filepath.Join(dir, "slow")
	constructing, proceed := make(chan struct{}), make(chan struct{})
	watched := make(chan error, 1)
	go func() {
		watched <- s.Watch(slow, func(path string) (*litestream.DB, error) {
			close(constructing)
			<-proceed
			return tenant(path)
		})
	}()
	<-constructing
	within(t, "the server beside a slow Watch", func() {
		if s.DB(slow) != nil {
			t.Error("DB returned what is not open")
		}
		db := mustWatch(t, s, quick)
		if dbs := s.DBs(); len(dbs) != 1 || dbs[0] != db {
			t.Errorf("databases are %v", dbs)
		}
		if err := s.Watch(slow, tenant); err == nil || errors.Is(err, litestream.ErrDatabaseLocked) {
			t.Errorf("watched twice at the same time: %v", err)
		}
		if err := s.Unwatch(quick); err != nil {
			t.Error(err)
		}
	})
	close(proceed)
	if err := <-watched; err != nil {
		t.Fatal(err)
	}
	if s.DB(slow) == nil {
		t.Error("not watched")
	}
}

func TestServer_CloseWaitsForWatch(t *testing.T) {
	s, dir := newServer(t)
	path := filepath.Join(dir, "db")
	constructing, proceed := make(chan struct{}), make(chan struct{})
	var db *litestream.DB
	watched, closed := make(chan error, 1), make(chan error, 2)
	go func() {
		watched <- s.Watch(path, func(path string) (*litestream.DB, error) {
			close(constructing)
			<-proceed
			db, _ = tenant(path)
			return db, nil
		})
	}()
	<-constructing
	for range 2 {
		go func() { closed <- s.Close() }()
	}
	eventually(t, 10*time.Second, "the server is closed", func() bool {
		return errors.Is(s.Watch(path+"2", tenant), litestream.ErrServerClosed)
	})
	select {
	case <-closed:
		t.Error("Close returned while a Watch was running")
	case <-time.After(50 * time.Millisecond):
	}
	close(proceed)
	if err := errors.Join(<-watched, <-closed, <-closed); err != nil {
		t.Fatal(err)
	}
	mustErrorIs(t, db.Sync(ctx), litestream.ErrDBClosed)
}

func TestServer_CloseReturnsTheErrorsOfAll(t *testing.T) {
	s := litestream.NewServer()
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"one", "two", "good"} {
		path := filepath.Join(dir, name)
		mustExec(t, openHost(t, path), `CREATE TABLE t (x)`)
		if err := s.Watch(path, func(path string) (*litestream.DB, error) {
			db, err := tenant(path)
			client := replicatest.NewFaultClient(tenantClient(path))
			if name != "good" {
				client.SetPlans(replicatest.FailAll(fmt.Errorf("replica %s is down", name)))
			}
			r := litestream.NewReplica(db, "fault", client)
			r.Logger = db.Logger
			db.Replicas = []*litestream.Replica{r}
			return db, err
		}); err != nil {
			t.Fatal(err)
		}
	}
	err := s.Close()
	if err == nil || !strings.Contains(err.Error(), "one is down") || !strings.Contains(err.Error(), "two is down") {
		t.Errorf("error is %v", err)
	}
	if n := countRows(t, mustRestore(t, tenantClient(filepath.Join(dir, "good")))); n != 0 {
		t.Error(n)
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// All methods at once, on a few paths, while the server is closed and opened.
func TestServer_ConcurrentUse(t *testing.T) {
	before := runtime.NumGoroutine()
	s, dir := newServer(t)
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			for i := range rounds {
				path := filepath.Join(dir, strconv.Itoa((worker+i)%4))
				if err := s.Watch(path, tenant); err != nil &&
					!errors.Is(err, litestream.ErrServerClosed) && !strings.Contains(err.Error(), "already watched") {
					t.Errorf("watch: %v", err)
				}
				s.DBs()
				if db := s.DB(path); db != nil {
					if err := db.Sync(ctx); err != nil && !errors.Is(err, litestream.ErrDBClosed) {
						t.Errorf("sync: %v", err)
					}
				}
				if err := s.Unwatch(path); err != nil {
					t.Errorf("unwatch: %v", err)
				}
				if worker == 0 && i%5 == 4 {
					if err := errors.Join(s.Close(), s.Open()); err != nil {
						t.Errorf("close and open: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	goroutinesSettle(t, before)
}

// PITFALLS row 42
func TestServer_ManyDatabases(t *testing.T) {
	n := *serverDatabases
	if testing.Short() {
		n = min(n, 50)
	}
	before := runtime.NumGoroutine()
	s, dir := newServer(t)
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprintf("tenant%04d", i))
	}
	each := func(what string, fn func(ctx context.Context, path string) error) time.Duration {
		t.Helper()
		began := time.Now()
		g, ctx := errgroup.WithContext(t.Context())
		g.SetLimit(8)
		for _, path := range paths {
			g.Go(func() error { return fn(ctx, path) })
		}
		if err := g.Wait(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return time.Since(began).Round(time.Millisecond)
	}
	insert := func(x string) func(context.Context, string) error {
		return func(ctx context.Context, path string) error {
			host := openHost(t, path)
			defer host.Close()
			_, err := host.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (?)`, x)
			return err
		}
	}
	each("create", insert("before"))

	idle := measure()
	opened := each("watch", func(_ context.Context, path string) error { return s.Watch(path, tenant) })
	if got := len(s.DBs()); got != n {
		t.Fatalf("the server has %d databases", got)
	}
	replicated := each("first snapshot", func(ctx context.Context, path string) error {
		db := s.DB(path)
		return db.WaitPos(ctx, db.Pos())
	})
	busy := measure()
	if per := float64(busy.goroutines-idle.goroutines) / float64(n); per > 3.5 {
		t.Errorf("%.1f goroutines per database", per)
	}
	if per := float64(busy.descriptors-idle.descriptors) / float64(n); per > 8 {
		t.Errorf("%.1f descriptors per database", per)
	}
	committed := each("commit", insert("meanwhile"))
	caught := each("replicate", func(ctx context.Context, path string) error {
		db := s.DB(path)
		if err := db.Sync(ctx); err != nil {
			return err
		}
		return db.WaitPos(ctx, db.Pos())
	})
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	closed := time.Since(began)
	restored := each("restore", func(ctx context.Context, path string) error {
		opt := litestream.NewRestoreOptions()
		opt.Logger = log.New(io.Discard, "", 0)
		_, err := litestream.RestoreLatest(ctx, tenantClient(path), path+"-restored", opt)
		if err != nil {
			return err
		}
		if rows := countRows(t, path+"-restored"); rows != 2 {
			return fmt.Errorf("%s: restored %d rows of 2", path, rows)
		}
		return nil
	})
	goroutinesSettle(t, before)
	t.Logf("%d databases: watched in %v, first snapshots %v later, a commit in each %v, replicated %v later, closed in %v, restored in %v",
		n, opened, replicated, committed, caught, closed.Round(time.Millisecond), restored)
	t.Logf("per database: %.2f goroutines, %.2f descriptors, %d bytes of heap, %d bytes resident",
		float64(busy.goroutines-idle.goroutines)/float64(n), float64(busy.descriptors-idle.descriptors)/float64(n),
		(busy.heap-idle.heap)/n, (busy.resident-idle.resident)/n)
}

// usage is what the process holds. Descriptors and resident bytes are known on
// Linux alone, and 0 elsewhere.
type usage struct{ goroutines, descriptors, heap, resident int }

func measure() (u usage) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.goroutines, u.heap = runtime.NumGoroutine(), int(m.HeapAlloc)
	if ents, err := os.ReadDir("/proc/self/fd"); err == nil {
		u.descriptors = len(ents)
	}
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 1 {
			pages, _ := strconv.Atoi(fields[1])
			u.resident = pages * os.Getpagesize()
		}
	}
	return u
}

func mustMkdir(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}
