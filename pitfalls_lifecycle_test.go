package litestream_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

// otherSQLite stands for a second copy of SQLite.
type otherSQLite struct{}

func (otherSQLite) Open(string) (driver.Conn, error) { return nil, errors.New("not a database") }

// PITFALLS row 2
func TestPitfall_SecondSQLiteInTheProcessIsWarnedOf(t *testing.T) {
	inChild(t, func() { // registering cannot be undone
		for _, registered := range []bool{false, true} {
			if registered {
				sql.Register("sqlite3", otherSQLite{})
			}
			var buf logBuffer
			db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
			db.Logger = buf.logger()
			checkAtEnd(t, db)
			mustOpen(t, db)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if warned := strings.Contains(buf.String(), `warning`) && strings.Contains(buf.String(), `"sqlite3"`); warned != registered {
				t.Errorf("registered %v, log: %q", registered, buf.String())
			}
		}
	})
}

// PITFALLS row 7
func TestPitfall_SnapshotsAndRestartsKeepTheGeneration(t *testing.T) {
	fx := newFixture(t)
	generation := fx.db.Pos().Generation
	snapshot := func() {
		t.Helper()
		info, err := fx.db.Replica("file").Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if pos := fx.db.Pos(); info.Generation != generation || info.Pos() != pos.Truncate() {
			t.Errorf("snapshot %s at position %s", info.Pos(), pos)
		}
	}
	snapshot()
	fx.insert(t, "one")
	mustSync(t, fx.db)
	fx.reopen(t)
	snapshot()
	fx.insert(t, "two")
	mustSync(t, fx.db)
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeRestart); err != nil {
		t.Fatal(err)
	}
	fx.insert(t, "three")
	snapshot()
	fx.reopen(t)
	fx.insert(t, "four")
	mustSync(t, fx.db)
	if pos := fx.db.Pos(); pos.Generation != generation || pos.Index != 1 {
		t.Errorf("position is %s, want index 1 of %s", pos, generation)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 13
func TestPitfall_FailedFirstSyncLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	fx := &fixture{dir: t.TempDir()}
	fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
	fx.db.Logger = testLogger(t)
	fx.client = fx.addReplica(t, "file")
	before := openHost(t, fx.db.Path())
	mustExec(t, before, `CREATE TABLE t (x)`)
	if err := before.Close(); err != nil {
		t.Fatal(err)
	}

	// A host that lets nobody else in, for longer than BusyTimeout.
	hostile := openHost(t, fx.db.Path(), "locking_mode(EXCLUSIVE)")
	hostile.SetMaxOpenConns(1)
	mustExec(t, hostile, `INSERT INTO t VALUES ('locked')`)
	mustOpen(t, fx.db) // tries, and goes on
	if err := fx.db.Sync(ctx); err == nil {
		t.Fatal("sync succeeded without access: the test locks nothing")
	}
	if fx.db.Stats().LastError == nil {
		t.Error("the error is not in the figures")
	}
	if pos := fx.db.Pos(); !pos.IsZero() || fx.db.SQLDB() != nil {
		t.Errorf("position is %s, pool %v, though nothing was opened", pos, fx.db.SQLDB())
	}
	if name, err := fx.db.CurrentGeneration(); name != "" || err != nil {
		t.Errorf("generation %q, error %v", name, err)
	}
	if err := hostile.Close(); err != nil {
		t.Fatal(err)
	}
	fx.host = openHost(t, fx.db.Path())
	fx.insert(t, "free")
	fx.mustReplicate(t)
}

// PITFALLS row 13
func TestPitfall_WriteLockDoesNotKeepTheFirstSyncFromWorking(t *testing.T) {
	fx := &fixture{dir: t.TempDir()}
	fx.db = litestream.NewDB(filepath.Join(fx.dir, "db"))
	fx.db.Logger = testLogger(t)
	fx.client = fx.addReplica(t, "file")
	fx.host = openHost(t, fx.db.Path())
	mustExec(t, fx.host, `CREATE TABLE t (x)`)
	conn, err := fx.host.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, query := range []string{`BEGIN IMMEDIATE`, `INSERT INTO t VALUES ('not yet')`} {
		if _, err := conn.ExecContext(ctx, query); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, fx.db)
	mustSync(t, fx.db)
	if n := countRows(t, mustRestore(t, fx.client)); n != 0 {
		t.Errorf("restored %d rows of an open transaction", n)
	}
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); !errors.Is(err, litestream.ErrCheckpointBusy) {
		t.Errorf("checkpoint beside a writer: %v", err)
	}
	if _, err := conn.ExecContext(ctx, `COMMIT`); err != nil {
		t.Fatal(err)
	}
	fx.mustReplicate(t)
}

// PITFALLS row 20
func TestPitfall_UnfinishedFilesAreSweptAtOpen(t *testing.T) {
	fx := newFixture(t)
	pos := fx.db.Pos()
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{
		fx.db.MetaPath(),
		filepath.Join(fx.db.ShadowWALDir(pos.Generation), litestream.FormatIndex(pos.Index)),
	} {
		for _, name := range []string{"generation.1-1.tmp", "snapshot-1.tmp", "0000000000000000.wal.lz4.2-1.tmp"} {
			writeFile(t, filepath.Join(dir, name), []byte("half"))
		}
	}
	fx.reopen(t)
	mustSync(t, fx.db)
	if names := tempFiles(t, fx.db.MetaPath()); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
	if got := fx.db.Pos(); got != pos {
		t.Errorf("position is %s, want %s", got, pos)
	}
	fx.mustReplicate(t)
}

// PITFALLS row 29
func TestPitfall_LibraryDoesNotFeedItself(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, func(db *litestream.DB) {
		db.CheckpointInterval = 50 * time.Millisecond
		db.MinCheckpointPageN = 1
	})
	reader, err := fx.host.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback()
	var n int
	if err := reader.QueryRow(`SELECT COUNT(*) FROM t`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	fx.insert(t, "behind the reader")
	mustSync(t, fx.db)
	pass(300 * time.Millisecond) // what is due by time is done
	wal, database := readFile(t, fx.db.WALPath()), readDatabase(t, fx.db)
	pos, checkpoints := fx.db.Pos(), fx.db.Stats().Checkpoints
	pass(idleTime())
	if string(readFile(t, fx.db.WALPath())) != string(wal) {
		t.Error("the wal changed while the host was idle")
	}
	if string(readDatabase(t, fx.db)) != string(database) {
		t.Error("the database changed while the host was idle")
	}
	if got := fx.db.Pos(); got != pos {
		t.Errorf("position moved from %s to %s", pos, got)
	}
	t.Logf("%d checkpoints before, %d while idle", checkpoints, fx.db.Stats().Checkpoints-checkpoints)
}

// PITFALLS row 32
func TestPitfall_LostEventsDelayTheCaptureByOnePoll(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]func(*litestream.DB){
		"no watch":    func(db *litestream.DB) { db.RestartMonitor(litestream.NoWatch{}) },
		"no event":    func(db *litestream.DB) { db.RestartMonitor(litestream.DeafWatch{}) },
		"notified by": func(db *litestream.DB) { db.RestartMonitor(litestream.DeafWatch{}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fx := newFixture(t)
			fx.db.StopMonitor()
			restart(fx.db)
			pass(500 * time.Millisecond) // the poll has slowed down
			before := fx.db.Pos()
			fx.insert(t, "unannounced")
			if name == "notified by" {
				fx.db.NotifyCh() <- struct{}{}
			}
			began := time.Now()
			eventually(t, 20*time.Second, "the commit is captured", func() bool { return fx.db.Pos() != before })
			lag := time.Since(began)
			// Polls are 0.5 s and 5 s; the bounds leave room for a busy machine.
			limit := map[string]time.Duration{"no watch": 3 * time.Second, "no event": 8 * time.Second, "notified by": 3 * time.Second}[name]
			if lag > limit {
				t.Errorf("lag %s, want at most %s", lag, limit)
			}
			fx.mustReplicate(t)
		})
	}
}

// PITFALLS row 35
func TestPitfall_CloseBringsTheLastWrites(t *testing.T) {
	fx := newFixture(t, func(db *litestream.DB) { db.Replicas[0].SyncInterval = time.Hour })
	generation := fx.db.Pos().Generation
	for i := range 3 {
		fx.insert(t, fmt.Sprint("last write ", i))
		if err := fx.host.Close(); err != nil { // as the documentation of Shutdown asks
			t.Fatal(err)
		}
		for range 2 {
			if err := fx.db.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n := countRows(t, mustRestore(t, fx.client)); n != i+2 {
			t.Fatalf("restored %d rows, want %d", n, i+2)
		}
		fx.client.SetPlans()
		if i == 1 {
			mustOpen(t, fx.db) // the same DB again
		} else {
			fx.reopen(t)
		}
		fx.host = openHost(t, fx.db.Path())
		mustSync(t, fx.db)
		if pos := fx.db.Pos(); pos.Generation != generation {
			t.Fatalf("position is %s after reopening, want generation %s", pos, generation)
		}
		if n := fx.client.Calls("WriteSnapshot"); n > 0 {
			t.Errorf("%d snapshots for the same generation", n)
		}
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// PITFALLS row 35
func TestPitfall_CloseBeforeTheHostKeepsTheGenerationIfNothingIsWritten(t *testing.T) {
	fx := newFixture(t)
	generation := fx.db.Pos().Generation
	fx.reopen(t) // the host stays open
	fx.insert(t, "after")
	mustSync(t, fx.db)
	if pos := fx.db.Pos(); pos.Generation != generation {
		t.Errorf("position is %s, want generation %s", pos, generation)
	}
	mustEqualRestore(t, fx.db, fx.client)
}

// openOddHost opens a database whose path needs escaping in a URI.
func openOddHost(t testing.TB, path string) *sql.DB {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	abs = filepath.ToSlash(abs)
	if !strings.HasPrefix(abs, "/") {
		abs = "/" + abs
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: "_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)"}
	host, err := sql.Open("sqlite", u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	mustExec(t, host, `CREATE TABLE IF NOT EXISTS t (x)`)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the test's own DSN is wrong: %v", err)
	}
	return host
}

// PITFALLS row 44
func TestPitfall_OddPathsAreReplicated(t *testing.T) {
	names := []string{"with space", "with%20percent", "with#hash", "ümläut", "a&b=c;d", "-dash", "with'quote"}
	if runtime.GOOS != "windows" {
		names = append(names, "with?mark", "a?mode=memory", `back\slash`, "new\nline", "co:lon")
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name+".d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			replicateAndRestore(t, filepath.Join(dir, name), filepath.Join(dir, name))
		})
	}
}

// replicateAndRestore replicates the database that the host opens at hostPath
// and the library at libraryPath, and restores it under a name of that kind.
func replicateAndRestore(t *testing.T, hostPath, libraryPath string) {
	t.Helper()
	db := litestream.NewDB(libraryPath)
	db.Logger = testLogger(t)
	client := fileclient.NewFileReplicaClient(filepath.Join(filepath.Dir(hostPath), "replica of "+filepath.Base(hostPath)))
	r := litestream.NewReplica(db, "", client)
	r.Logger = db.Logger
	db.Replicas = []*litestream.Replica{r}
	mustOpen(t, db) // before the database exists
	checkAtEnd(t, db)
	host := openOddHost(t, hostPath)
	mustExec(t, host, `INSERT INTO t VALUES (1)`)
	mustSync(t, db)
	if db.Pos().IsZero() {
		t.Fatal("nothing was captured")
	}
	restored := libraryPath + ".restored"
	if _, err := litestream.RestoreLatest(ctx, client, restored, litestream.RestoreOptions{
		Logger: testLogger(t), IntegrityCheck: litestream.IntegrityCheckFull,
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	if string(readFile(t, restored)) != string(readDatabase(t, db)) {
		t.Error("the restored database differs")
	}
}

// PITFALLS row 44
func TestPitfall_LinksAndRelativePathsAreResolved(t *testing.T) {
	t.Run("link to a file", func(t *testing.T) {
		dir := t.TempDir()
		target, link := filepath.Join(dir, "real", "db"), filepath.Join(dir, "link")
		if err := os.Mkdir(filepath.Dir(target), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("real", "db"), link); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
		replicateAndRestore(t, target, link)
		if _, err := os.Stat(target + litestream.MetaDirSuffix); err != nil {
			t.Errorf("the meta directory is not beside the file: %v", err)
		}
		if second := litestream.NewDB(target); second.Open() == nil {
			t.Error("a second manager opened the same file under its other name")
		}
	})
	t.Run("link to a directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
		replicateAndRestore(t, filepath.Join(dir, "link", "db"), filepath.Join(dir, "link", "db"))
	})
	t.Run("relative", func(t *testing.T) {
		dir := t.TempDir()
		t.Chdir(dir)
		replicateAndRestore(t, filepath.Join(dir, "db"), "db")
	})
}

// callAll calls every exported method of v, with ctx for a context, and
// returns their errors by name.
func callAll(t *testing.T, ctx context.Context, v any) map[string]error {
	t.Helper()
	errs := make(map[string]error)
	rv := reflect.ValueOf(v)
	for i := range rv.NumMethod() {
		name := rv.Type().Method(i).Name
		switch name {
		case "SetFS", "StopMonitor", "RestartMonitor", "ReleasePin": // of export_test.go
			continue
		case "Open":
			continue
		}
		method := rv.Method(i)
		args := make([]reflect.Value, method.Type().NumIn())
		for i := range args {
			args[i] = argument(ctx, method.Type().In(i))
		}
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%T.%s panics: %v", v, name, p)
				}
			}()
			for _, out := range method.Call(args) {
				if err, ok := out.Interface().(error); ok {
					errs[name] = err
				}
			}
		}()
	}
	return errs
}

func argument(ctx context.Context, typ reflect.Type) reflect.Value {
	switch typ {
	case reflect.TypeFor[context.Context]():
		return reflect.ValueOf(ctx)
	case reflect.TypeFor[litestream.Pos]():
		return reflect.ValueOf(litestream.Pos{Generation: "0123456789abcdef", Index: 1, Offset: 32})
	case reflect.TypeFor[func(*os.File) error]():
		return reflect.ValueOf(func(*os.File) error { return nil })
	case reflect.TypeFor[string]():
		return reflect.ValueOf("0123456789abcdef")
	}
	return reflect.Zero(typ)
}

// PITFALLS row 45
func TestPitfall_UnopenedAndClosedObjectsReturnErrors(t *testing.T) {
	newObjects := func() (*litestream.DB, *litestream.Replica) {
		db := litestream.NewDB(filepath.Join(t.TempDir(), "db"))
		db.Logger = testLogger(t)
		r := litestream.NewReplica(db, "file", fileclient.NewFileReplicaClient(filepath.Join(t.TempDir(), "replica")))
		r.Logger = db.Logger
		db.Replicas = append(db.Replicas, r)
		checkAtEnd(t, db)
		return db, r
	}
	needOpen := map[string][]string{
		"DB":      {"Sync", "Checkpoint", "SyncAndWait", "WaitPos", "WALSegments"},
		"Replica": {"Sync", "Snapshot", "WaitPos"},
	}
	check := func(t *testing.T, v any, kind string) {
		t.Helper()
		limit, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		errs := callAll(t, limit, v)
		if db, ok := v.(*litestream.DB); ok { // the mode that callAll knows is none
			errs["Checkpoint"] = db.Checkpoint(limit, litestream.CheckpointModePassive)
		}
		for _, name := range needOpen[kind] {
			if !errors.Is(errs[name], litestream.ErrDBClosed) {
				t.Errorf("%s.%s: %v, want ErrDBClosed", kind, name, errs[name])
			}
		}
		for name, err := range errs {
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s.%s hangs", kind, name)
			}
		}
	}
	t.Run("unopened", func(t *testing.T) {
		db, r := newObjects()
		check(t, db, "DB")
		check(t, r, "Replica")
		for _, db := range []*litestream.DB{nil, db} {
			r := litestream.NewReplica(db, "", nil)
			r.Logger = testLogger(t)
			check(t, r, "incomplete")
		}
	})
	t.Run("closed", func(t *testing.T) {
		db, r := newObjects()
		host := openHost(t, db.Path())
		mustExec(t, host, `CREATE TABLE t (x)`)
		mustOpen(t, db)
		mustSync(t, db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		check(t, db, "DB")
		check(t, r, "Replica")
	})
	t.Run("open", func(t *testing.T) { // without a database
		db, r := newObjects()
		mustOpen(t, db)
		limit, cancel := context.WithTimeout(ctx, 100*time.Millisecond) // WaitPos rightly waits
		defer cancel()
		callAll(t, limit, r)
		callAll(t, limit, db)
	})
}

// PITFALLS row 45
func TestPitfall_NothingIsWrittenToStandardOutput(t *testing.T) {
	stdout, ok := inChild(t, func() {
		litestream.LogWriter = io.Discard
		dir := t.TempDir()
		db := litestream.NewDB(filepath.Join(dir, "db"))
		r := litestream.NewReplica(db, "", fileclient.NewFileReplicaClient(filepath.Join(dir, "replica")))
		db.Replicas = append(db.Replicas, r)
		checkAtEnd(t, db)
		host := openHost(t, db.Path())
		mustExec(t, host, `CREATE TABLE t (x)`)
		mustOpen(t, db)
		mustSync(t, db)
		if _, err := r.Snapshot(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := litestream.RestoreLatest(ctx, r.Client(), filepath.Join(dir, "restored"), litestream.NewRestoreOptions()); err != nil {
			t.Fatal(err)
		}
		mustEqualRestore(t, db, r.Client())
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	})
	verdict, coverage, _ := strings.Cut(strings.TrimSpace(stdout), "\n") // go test -cover adds a line
	if ok && (verdict != "PASS" || coverage != "" && (testing.CoverMode() == "" || strings.Contains(coverage, "\n"))) {
		t.Errorf("the process wrote:\n%s", stdout)
	}
}

// A DB that was closed is opened again after another one of the same file
// wrote to the replica.
func TestPitfall_SameDBOpenedAgainAfterAnotherManager(t *testing.T) {
	fx := newFixture(t, manually)
	fx.insertBlob(t, 100)
	mustSync(t, fx.db)
	if err := fx.db.Close(); err != nil {
		t.Fatal(err)
	}
	other := litestream.NewDB(fx.db.Path())
	other.Logger = fx.db.Logger
	r := litestream.NewReplica(other, "file", fx.client)
	r.Logger = other.Logger
	other.Replicas = append(other.Replicas, r)
	mustOpen(t, other)
	for range 3 {
		fx.insertBlob(t, 100)
		mustSync(t, other)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, fx.db)
	fx.insertBlob(t, 100)
	mustSync(t, fx.db)
	mustEqualRestore(t, fx.db, fx.client)
}

// Someone removes the meta directory, and the WAL restarts.
func TestPitfall_RemovedMetaDirectoryIsNoStandstill(t *testing.T) {
	fx := newFixture(t, manually)
	fx.db.StopMonitor()
	fx.insertBlob(t, 100)
	mustSync(t, fx.db)
	if err := fx.db.Checkpoint(ctx, litestream.CheckpointModeFull); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(fx.db.ShadowWALDir("")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(fx.db.GenerationPath("")); err != nil {
		t.Fatal(err)
	}
	fx.insertBlob(t, 100)
	mustSync(t, fx.db)
	mustEqualRestore(t, fx.db, fx.client)
}
