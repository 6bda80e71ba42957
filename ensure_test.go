package litestream_test

import (
	"bytes"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/replicatest"
)

// replicaSet returns a DB of a database that does not exist, with replicas
// whose clients can be made to fail. Each holds as many rows as rows says; 0
// leaves it empty.
func replicaSet(t *testing.T, rows ...int) (*litestream.DB, []*replicatest.FaultClient) {
	t.Helper()
	dir := t.TempDir()
	db := litestream.NewDB(filepath.Join(dir, "sub", "db")) // a directory that does not exist, either
	db.Logger = testLogger(t)
	checkAtEnd(t, db)
	var clients []*replicatest.FaultClient
	source := &fixture{dir: dir}
	source.db = litestream.NewDB(filepath.Join(dir, "source"))
	source.db.Logger = db.Logger
	for i, n := range rows {
		name := string(rune('a' + i))
		client := replicatest.NewFaultClient(fileclient.NewFileReplicaClient(filepath.Join(dir, name)))
		clients = append(clients, client)
		r := litestream.NewReplica(db, name, client)
		r.Logger = db.Logger
		db.Replicas = append(db.Replicas, r)
		if n > 0 {
			source.addReplica(t, name)
		} else {
			source.db.Replicas = append(source.db.Replicas, nil) // keeps the places equal
		}
	}
	all := source.db.Replicas
	source.db.Replicas = nil
	for _, r := range all {
		if r != nil {
			source.db.Replicas = append(source.db.Replicas, r)
		}
	}
	manually(source.db)
	source.host = openHost(t, source.db.Path())
	mustExec(t, source.host, `CREATE TABLE t (x)`)
	mustOpen(t, source.db)
	mustSync(t, source.db)
	for inserted := 1; inserted <= 5; inserted++ {
		source.insert(t, "row")
		if err := source.db.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		for i, r := range all {
			if rows[i] < inserted {
				continue
			}
			if err := r.Sync(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A close would bring all replicas up to date.
	t.Cleanup(source.db.StopMonitor)
	return db, clients
}

func TestEnsureExists_RestoresFromTheFurthestReplica(t *testing.T) {
	db, _ := replicaSet(t, 2, 4, 0, 3)
	if r, err := litestream.LatestReplica(ctx, db.Replicas); err != nil || r.Name() != "b" {
		t.Fatalf("latest replica is %v, error %v; want b", r, err)
	}
	var logged bytes.Buffer
	db.Logger = log.New(&logged, "", 0)
	if err := db.EnsureExists(ctx); err != nil {
		t.Fatal(err)
	}
	if got := logged.String(); !strings.HasPrefix(got, `replica "b": restored `) || strings.Count(got, "\n") != 1 {
		t.Errorf("logged %q", got)
	}
	if n := countRows(t, db.Path()); n != 4 {
		t.Errorf("restored %d rows, want 4", n)
	}
	if names := tempFiles(t, filepath.Dir(db.Path())); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestEnsureExists_EmptyReplicasLetTheHostStartAfresh(t *testing.T) {
	db, clients := replicaSet(t, 0, 0)
	var logged bytes.Buffer
	db.Logger = log.New(&logged, "", 0)
	if err := db.EnsureExists(ctx); err != nil {
		t.Fatal(err)
	}
	if got, want := logged.String(), "no replica holds a database: nothing was restored\n"; got != want {
		t.Errorf("logged %q, want %q", got, want)
	}
	if _, err := os.Stat(db.Path()); !os.IsNotExist(err) {
		t.Errorf("a database appeared: %v", err)
	}
	_, err := litestream.LatestReplica(ctx, db.Replicas)
	mustErrorIs(t, err, litestream.ErrNoGeneration)

	clients[1].SetPlans(replicatest.FailAll(errInjected)) // it might hold everything
	mustErrorIs(t, db.EnsureExists(ctx), errInjected)
}

// What is no path of a file must not look like a database without a backup.
func TestEnsureExists_PathThatIsNoFilesIsAnError(t *testing.T) {
	_, clients := replicaSet(t, 1)
	dir := t.TempDir()
	t.Chdir(dir)
	for _, path := range []string{"", ":memory:", "file:app.db?_pragma=journal_mode(WAL)", dir} {
		db := litestream.NewDB(path)
		db.Logger = testLogger(t)
		db.Replicas = append(db.Replicas, litestream.NewReplica(db, "", clients[0]))
		err := db.EnsureExists(ctx)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("EnsureExists of %q: error %v", path, err)
		}
		if err := db.Open(); err == nil && path != dir {
			t.Errorf("Open of %q succeeded", path)
		}
		if err := db.Close(); err != nil && path != dir {
			t.Error(err)
		}
	}
	ents, err := os.ReadDir(dir)
	if err != nil || len(ents) > 0 {
		t.Errorf("left behind: %v, error %v", ents, err)
	}
}

func TestEnsureExists_NilReplicaIsAnError(t *testing.T) {
	db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
	for _, r := range []*litestream.Replica{nil, litestream.NewReplica(db, "a", nil)} {
		db.Replicas = []*litestream.Replica{r}
		if err := db.EnsureExists(ctx); err == nil {
			t.Error("EnsureExists succeeded")
		}
		if _, err := litestream.LatestReplica(ctx, db.Replicas); err == nil {
			t.Error("LatestReplica succeeded")
		}
	}
}

func TestEnsureExists_ReplicaThatCannotBeReadIsAnError(t *testing.T) {
	for _, method := range []string{"Generations", "Snapshots", "WALSegments"} {
		t.Run(method, func(t *testing.T) {
			db, clients := replicaSet(t, 1, 2)
			clients[0].SetPlans(replicatest.FailAll(errInjected, method)) // it might be the furthest
			mustErrorIs(t, db.EnsureExists(ctx), errInjected)
			_, err := litestream.LatestReplica(ctx, db.Replicas)
			mustErrorIs(t, err, errInjected)
			if _, err := os.Stat(db.Path()); !os.IsNotExist(err) {
				t.Errorf("a database appeared: %v", err)
			}
			clients[0].SetPlans()
			if err := db.EnsureExists(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEnsureExists_RestoreThatFailsLeavesNothingBehind(t *testing.T) {
	db, clients := replicaSet(t, 3)
	clients[0].SetPlans(replicatest.FailAll(errInjected, "WALSegmentReader"))
	mustErrorIs(t, db.EnsureExists(ctx), errInjected)
	ents, err := os.ReadDir(filepath.Dir(db.Path()))
	if err != nil && !os.IsNotExist(err) || len(ents) > 0 {
		t.Errorf("left behind: %v, error %v", ents, err)
	}
}

func TestEnsureExists_LeavesAnExistingFileAlone(t *testing.T) {
	db, clients := replicaSet(t, 3)
	if err := os.MkdirAll(filepath.Dir(db.Path()), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, db.Path(), []byte("whatever it is"))
	if err := db.EnsureExists(ctx); err != nil {
		t.Fatal(err)
	}
	if got := string(readFile(t, db.Path())); got != "whatever it is" {
		t.Errorf("the file was changed to %q", got)
	}
	if n := clients[0].Calls(); n != 0 {
		t.Errorf("%d calls though the file exists", n)
	}

	// A -wal without its database is somebody's data, too.
	if err := os.Rename(db.Path(), db.WALPath()); err != nil {
		t.Fatal(err)
	}
	mustErrorIs(t, db.EnsureExists(ctx), fs.ErrExist)
	if got := string(readFile(t, db.WALPath())); got != "whatever it is" {
		t.Errorf("the wal was changed to %q", got)
	}
}

// Each replica cuts the WAL into segments of its own: the one whose last
// segment begins later may end earlier.
func TestLatestReplica_JoinedSegmentReachesFurther(t *testing.T) {
	for _, order := range []string{"ab", "ba"} {
		t.Run(order, func(t *testing.T) {
			fx := &fixture{dir: t.TempDir()}
			fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
			fx.db.Logger = testLogger(t)
			checkAtEnd(t, fx.db)
			for _, name := range order {
				fx.addReplica(t, string(name))
			}
			manually(fx.db)
			fx.host = openHost(t, fx.db.Path())
			mustExec(t, fx.host, `CREATE TABLE t (x)`)
			mustOpen(t, fx.db)
			mustSync(t, fx.db)
			for _, name := range []string{"a", "a", "a", "b"} { // b has four rows, in one segment
				fx.insert(t, "row")
				if err := fx.db.Sync(ctx); err != nil {
					t.Fatal(err)
				}
				if err := fx.db.Replica(name).Sync(ctx); err != nil {
					t.Fatal(err)
				}
			}
			mustBeLatest := func(name string) {
				t.Helper()
				r, err := litestream.LatestReplica(ctx, fx.db.Replicas)
				if err != nil {
					t.Fatal(err)
				}
				if r.Name() != name {
					t.Errorf("latest replica is %s, want %s", r.Name(), name)
				}
			}
			mustBeLatest("b")
			if err := fx.db.Close(); err != nil { // brings both up to date
				t.Fatal(err)
			}
			mustBeLatest(order[:1])
		})
	}
}

// SQLite makes an empty file of a path that it opens.
func TestEnsureExists_EmptyFileIsNotTakenForTheDatabase(t *testing.T) {
	for _, rows := range []int{0, 3} {
		db, _ := replicaSet(t, rows)
		if err := os.MkdirAll(filepath.Dir(db.Path()), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, db.Path(), nil)
		if rows == 0 { // nothing is lost
			if err := db.EnsureExists(ctx); err != nil {
				t.Error(err)
			}
			continue
		}
		mustErrorIs(t, db.EnsureExists(ctx), fs.ErrExist)
		if err := os.Remove(db.Path()); err != nil { // as the error says
			t.Fatal(err)
		}
		if err := db.EnsureExists(ctx); err != nil {
			t.Fatal(err)
		}
		if n := countRows(t, db.Path()); n != rows {
			t.Errorf("restored %d rows, want %d", n, rows)
		}
	}
}

// Of two processes that start at once, one restores, and both go on.
func TestEnsureExists_TwoAtOnce(t *testing.T) {
	db, clients := replicaSet(t, 3)
	other := litestream.NewDB(db.Path())
	other.Logger = db.Logger
	other.Replicas = append(other.Replicas, litestream.NewReplica(other, "", fileclient.NewFileReplicaClient(filepath.Join(filepath.Dir(filepath.Dir(db.Path())), "a"))))
	clients[0].SetPlans(failIf(func(call replicatest.Call) error {
		if call.Method == "SnapshotReader" { // the first is about to read
			return other.EnsureExists(ctx)
		}
		return nil
	}))
	if err := db.EnsureExists(ctx); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, db.Path()); n != 3 {
		t.Errorf("restored %d rows, want 3", n)
	}
}
