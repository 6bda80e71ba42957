package litestream_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
)

var followTime = flag.Duration("follow", 3*time.Second, "how long TestFollower_ReadersSeeConsistentStates writes")

// newFollower returns a DB, not opened, of dir/db that follows an upstream. The
// cleanup closes it.
func newFollower(t testing.TB, dir string, upstream litestream.StreamClient) *litestream.DB {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := litestream.NewDB(filepath.Join(dir, "db"))
	f.Logger = testLogger(t)
	f.StreamClient = upstream
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close follower in cleanup: %v", err)
		}
	})
	return f
}

// newPrimary returns an open DB of dir/db and its host, with a table t.
func newPrimary(t testing.TB, dir string) (*litestream.DB, *sql.DB) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	db := newDB(t, dir)
	host := openHost(t, db.Path(), "synchronous(NORMAL)")
	mustExec(t, host, "CREATE TABLE t (n INTEGER PRIMARY KEY, s TEXT)")
	mustOpen(t, db)
	mustSync(t, db)
	return db, host
}

// mustFollow waits until the follower has all that the primary's host
// committed, and proves that their pages are equal.
func mustFollow(t testing.TB, primary, follower *litestream.DB) {
	t.Helper()
	mustCatchUp(t, primary, follower)
	mustEqualPages(t, primary, follower)
}

func mustCatchUp(t testing.TB, primary, follower *litestream.DB) {
	t.Helper()
	if err := primary.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := follower.WaitPos(ctx, primary.Pos()); err != nil {
		t.Fatalf("%v; it is at %s: %v", err, follower.Pos(), follower.Stats().LastError)
	}
}

// mustEqualPages compares the databases page by page, but for the change
// counter and the version that it is valid for.
func mustEqualPages(t testing.TB, primary, follower *litestream.DB) {
	t.Helper()
	var files [2][]byte
	for i, db := range []*litestream.DB{primary, follower} {
		if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
		files[i] = readDatabase(t, db)
		clear(files[i][24:28])
		clear(files[i][92:96])
	}
	if !bytes.Equal(files[0], files[1]) {
		t.Fatalf("primary has %d bytes, follower %d; first difference at %#x", len(files[0]), len(files[1]), firstDifference(files[0], files[1]))
	}
}

func mustBeIntact(t testing.TB, host *sql.DB) {
	t.Helper()
	var result string
	if err := host.QueryRow("PRAGMA integrity_check").Scan(&result); err != nil || result != "ok" {
		t.Fatalf("integrity_check: %v %s", err, result)
	}
}

func TestFollower(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	reader := openHost(t, f.Path(), "query_only(1)")
	for i, query := range []string{
		"INSERT INTO t (s) VALUES ('one')",
		"CREATE TABLE u (b BLOB)",
		"INSERT INTO u VALUES (randomblob(2000000))",
		"CREATE INDEX us ON u (length(b)); UPDATE t SET s = 'two'",
		"DELETE FROM u",
		"VACUUM",
		"DROP TABLE u",
	} {
		mustExec(t, host, query)
		mustCatchUp(t, primary, f)
		mustBeIntact(t, reader)
		if i%2 == 1 {
			mustEqualPages(t, primary, f)
		}
	}
	var s string
	if err := reader.QueryRow("SELECT s FROM t").Scan(&s); err != nil || s != "two" {
		t.Errorf("follower has %q, %v", s, err)
	}
	if st := f.Stats().Follower; st.Snapshots != 1 || st.Streams != 1 || st.Upstream != primary.Pos() || st.LastRecord.IsZero() {
		t.Errorf("stats are %+v; the primary is at %s", st, primary.Pos())
	}
	if b, err := os.ReadFile(f.PositionPath()); err == nil && !strings.HasPrefix(string(b), primary.Pos().Generation) {
		t.Errorf("position file holds %q", b)
	}
	mustFollow(t, primary, f)
}

// A follower that was closed in good order goes on without a snapshot, also
// over a restart of the primary's WAL.
func TestFollower_GoesOn(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	for i := range 5 {
		mustOpen(t, f)
		mustFollow(t, primary, f)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if n := f.Stats().Follower.Snapshots; n > 0 {
			t.Errorf("closed follower has figures: %d snapshots", n)
		}
		mustExec(t, host, "INSERT INTO t (s) VALUES (?)", strings.Repeat("x", 3000*i))
		if err := primary.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
		mustExec(t, host, "INSERT INTO t (s) VALUES ('y')")
	}
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 0 {
		t.Errorf("%d snapshots, though everything was held", n)
	}
}

// A new generation of the primary comes as a snapshot, while readers read.
func TestFollower_TakesANewGeneration(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustExec(t, host, "INSERT INTO t (s) SELECT hex(randomblob(500)) FROM (WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i < 300) SELECT i FROM c)")
	mustOpen(t, f)
	mustFollow(t, primary, f)
	reader := openHost(t, f.Path(), "query_only(1)")
	tx, err := reader.Begin() // holds the old state
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	count := func() (n int) {
		t.Helper()
		if err := tx.QueryRow("SELECT count(*) FROM t").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	count()
	old := primary.Pos().Generation
	if err := primary.Close(); err != nil {
		t.Fatal(err)
	}
	mustExec(t, host, "DELETE FROM t WHERE n % 3 > 0; VACUUM; PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t (s) VALUES ('new')")
	mustOpen(t, primary)
	mustCatchUp(t, primary, f)
	if primary.Pos().Generation == old {
		t.Fatal("the primary began no new generation")
	}
	if n := count(); n != 300 {
		t.Errorf("an open transaction sees %d rows of 300", n)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	mustBeIntact(t, reader)
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 2 {
		t.Errorf("%d snapshots", n)
	}
}

// PITFALLS row 21
func TestFollower_ReadersSeeConsistentStates(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	primary.Logger = discardLogger()
	mustExec(t, host, "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, note TEXT)")
	mustExec(t, host, "INSERT INTO account SELECT value, 100, '' FROM (WITH RECURSIVE c(value) AS (SELECT 1 UNION ALL SELECT value+1 FROM c WHERE value < 100) SELECT value FROM c)")
	var followers []*litestream.DB
	for i := range 3 {
		f := newFollower(t, filepath.Join(dir, fmt.Sprint("follower", i)), primary)
		mustOpen(t, f)
		mustCatchUp(t, primary, f)
		followers = append(followers, f)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(fn func(i int) error) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := fn(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for _, f := range followers {
		reader := openHost(t, f.Path(), "query_only(1)")
		loop(func(int) error {
			var sum, n int
			if err := reader.QueryRow("SELECT sum(balance), count(*) FROM account").Scan(&sum, &n); err != nil {
				return err
			}
			if sum != 100*n || n != 100 {
				return fmt.Errorf("%s: %d accounts hold %d", f.Path(), n, sum)
			}
			var result string
			if err := reader.QueryRow("PRAGMA integrity_check").Scan(&result); err != nil || result != "ok" {
				return fmt.Errorf("%s: integrity_check: %v %s", f.Path(), err, result)
			}
			return nil
		})
	}
	visitor := startChild(t, "count", followers[0].Path())
	loop(func(i int) error {
		tx, err := host.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.Exec("UPDATE account SET balance = balance - 1, note = hex(randomblob(?)) WHERE id = ?", i%700, i%100+1); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE account SET balance = balance + 1 WHERE id = ?", (i*7)%100+1); err != nil {
			return err
		}
		return tx.Commit()
	})
	loop(func(i int) error {
		time.Sleep(200 * time.Millisecond) // the pace of the load, nothing waits for it
		for _, query := range []string{
			fmt.Sprintf("CREATE TABLE x%d (a); CREATE INDEX xi%d ON x%d (a)", i, i, i),
			fmt.Sprintf("INSERT INTO x%d VALUES (randomblob(%d))", i, 1000*(i%90)),
			"VACUUM",
			fmt.Sprintf("DROP TABLE x%d", i),
		} {
			if _, err := host.Exec(query); err != nil {
				return err
			}
		}
		return nil
	})
	time.Sleep(*followTime) // the length of the load, as the flag says
	close(stop)
	wg.Wait()
	visitor.mustEnd(t)
	for _, f := range followers {
		mustFollow(t, primary, f)
		t.Logf("%s: %+v", f.Path(), f.Stats().Follower)
	}
	mustSync(t, primary)
	mustEqualRestore(t, primary, primary.Replicas[0].Client())
}

func init() { childRoles["count"] = countChild }

// countChild reads the accounts of a follower's database until stdin ends.
func countChild(args []string) error {
	host, err := childHost(args[0])
	if err != nil {
		return err
	}
	end := make(chan struct{})
	go func() { awaitEnd(); close(end) }()
	for {
		select {
		case <-end:
			return host.Close()
		default:
		}
		var sum, n int
		if err := host.QueryRow("SELECT sum(balance), count(*) FROM account").Scan(&sum, &n); err != nil {
			return err
		}
		if sum != 100*n {
			return fmt.Errorf("%d accounts hold %d", n, sum)
		}
	}
}

// A commit of someone else to the follower's database is found with the next
// change, reported, and replaced by a snapshot.
func TestFollower_LocalWriteIsFoundAndHealed(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	var log logBuffer
	f.Logger = log.logger()
	mustOpen(t, f)
	mustFollow(t, primary, f)
	stray := openHost(t, f.Path())
	mustExec(t, stray, "INSERT INTO t (s) VALUES ('stray')")
	mustExec(t, host, "CREATE TABLE u (x)")
	mustFollow(t, primary, f)
	if got := log.String(); !strings.Contains(got, litestream.ErrFollowerModified.Error()) {
		t.Errorf("the change was not reported:\n%s", got)
	}
	if n := f.Stats().Follower.Snapshots; n != 2 {
		t.Errorf("%d snapshots", n)
	}
	if err := f.Stats().LastError; err != nil {
		t.Errorf("healed, and still reported: %v", err)
	}
}

// A follower that crashed between apply and the note of its position applies
// again what it had, in one transaction, and is right.
func TestFollower_AppliesTwiceAfterACrash(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(f.MetaPath(), "follower")
	mustOpen(t, f)
	mustExec(t, host, "INSERT INTO t (s) VALUES ('first')")
	mustCatchUp(t, primary, f)
	old := readFile(t, state)
	for i := range 50 {
		mustExec(t, host, "INSERT INTO t (s) VALUES (?)", strings.Repeat("z", i*50))
	}
	mustExec(t, host, "DELETE FROM t WHERE n > 25; VACUUM")
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"old": old, "torn": old[:50], "zeros": make([]byte, len(old)), "none": nil} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(state, b, 0o600); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, f)
			reader := openHost(t, f.Path(), "query_only(1)")
			mustBeIntact(t, reader)
			mustFollow(t, primary, f)
			mustBeIntact(t, reader)
			if n := f.Stats().Follower.Snapshots; (n == 0) != (name == "old" && litestream.HasBootID()) {
				t.Errorf("%d snapshots", n)
			}
			if err := errors.Join(reader.Close(), f.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestFollower_PageSizeOfTheUpstreamChanges(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if err := primary.Close(); err != nil {
		t.Fatal(err)
	}
	mustExec(t, host, "PRAGMA journal_mode=DELETE")
	mustExec(t, host, "PRAGMA page_size=1024")
	mustExec(t, host, "VACUUM")
	mustExec(t, host, "PRAGMA journal_mode=WAL")
	mustExec(t, host, "INSERT INTO t (s) VALUES ('small')")
	mustOpen(t, primary)
	mustAwait(t, "the page size is refused", func() bool { return errors.Is(f.Stats().LastError, litestream.ErrPageSizeMismatch) })
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(f.Path() + suffix); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	mustOpen(t, f)
	mustFollow(t, primary, f)
}

// What makes no sense for a follower is an error that says so.
func TestFollower_RefusesWhatIsForPrimaries(t *testing.T) {
	dir := t.TempDir()
	primary, _ := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	f.Replicas = append(f.Replicas, litestream.NewReplica(f, "r", primary.Replicas[0].Client()))
	if err := f.Open(); err == nil || !strings.Contains(err.Error(), "Replicas") {
		t.Errorf("open with a replica: %v", err)
	}
	f.Replicas = nil
	mustOpen(t, f)
	mustFollow(t, primary, f)
	_, serr := f.Stream(ctx, litestream.Pos{})
	_, werr := f.WALSegments(ctx, f.Pos().Generation)
	for name, err := range map[string]error{
		"Sync": f.Sync(ctx), "SyncAndWait": f.SyncAndWait(ctx), "Stream": serr, "WALSegments": werr,
	} {
		mustErrorIs(t, err, litestream.ErrFollower)
		if !strings.Contains(err.Error(), "db") && name != "WALSegments" {
			t.Errorf("%s: %v does not name the database", name, err)
		}
	}
	for _, mode := range []string{litestream.CheckpointModePassive, litestream.CheckpointModeFull, litestream.CheckpointModeRestart, litestream.CheckpointModeTruncate} {
		if err := f.Checkpoint(ctx, mode); err != nil {
			t.Error(err)
		}
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	mustErrorIs(t, f.WaitPos(short, litestream.Pos{Generation: "0123456789abcdef", Index: 1}), context.Canceled)
	waited := make(chan error)
	go func() { waited <- f.WaitPos(ctx, litestream.Pos{Generation: "0123456789abcdef", Index: 1}) }()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustErrorIs(t, <-waited, litestream.ErrDBClosed)
}

// A follower that becomes a primary begins a history of its own, and one that
// follows again takes a snapshot.
func TestFollower_Promotion(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustExec(t, host, "INSERT INTO t (s) VALUES ('before')")
	mustFollow(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	promoted := newDB(t, filepath.Join(dir, "follower"))
	mustOpen(t, promoted)
	newHost := openHost(t, promoted.Path())
	mustExec(t, newHost, "INSERT INTO t (s) VALUES ('after')")
	mustSync(t, promoted)
	if promoted.Pos().Generation == primary.Pos().Generation {
		t.Error("the promoted follower goes on with the primary's generation")
	}
	mustEqualRestore(t, promoted, promoted.Replicas[0].Client())
	if err := errors.Join(newHost.Close(), promoted.Close()); err != nil {
		t.Fatal(err)
	}

	mustOpen(t, f)
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots", n)
	}
}

// A reader that does not read is dropped in time, and holds up nobody.
func TestStream_SlowReaderIsDropped(t *testing.T) {
	primary, host := newPrimary(t, t.TempDir())
	primary.ShadowRetentionN = 1
	slow, err := primary.Stream(ctx, primary.Pos())
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	const backlog = 100_000
	primary.SetStreamBacklog(backlog)
	for range 30 { // 10 kB each that do not compress; the database stays small
		mustExec(t, host, "DELETE FROM t; INSERT INTO t (s) VALUES (randomblob(10000))")
		if err := primary.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, primary) // the replica needs nothing any more
	mustExec(t, host, "INSERT INTO t (s) VALUES ('last')")
	mustSync(t, primary)
	if _, err := slow.Next(); err != nil { // the heartbeat that was due
		t.Error(err)
	}
	_, err = slow.Next()
	mustErrorIs(t, err, litestream.ErrStreamTooSlow)
	if n := shadowIndexes(t, primary); n > backlog/10_000+2 {
		t.Errorf("%d indexes are kept", n)
	}
}

func TestStream_Ends(t *testing.T) {
	primary, host := newPrimary(t, t.TempDir())
	open := func(ctx context.Context) litestream.StreamReader {
		t.Helper()
		r, err := primary.Stream(ctx, primary.Pos())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		if hdr, err := r.Next(); err != nil || hdr.Size != 0 || hdr.Pos() != primary.Pos() {
			t.Fatalf("first record is %+v, %v; want a heartbeat", hdr, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("a heartbeat has a body: %d, %v", n, err)
		}
		return r
	}
	for name, test := range map[string]struct {
		end  func(r litestream.StreamReader, cancel func())
		want error
	}{
		"context": {func(_ litestream.StreamReader, cancel func()) { cancel() }, context.Canceled},
		"close":   {func(r litestream.StreamReader, _ func()) { r.Close() }, nil},
		"generation": {func(litestream.StreamReader, func()) {
			mustExec(t, host, "PRAGMA wal_checkpoint(TRUNCATE)")
			if err := primary.NewGeneration(ctx); err != nil {
				t.Error(err)
			}
		}, io.EOF},
		"database": {func(litestream.StreamReader, func()) { primary.Close() }, litestream.ErrDBClosed},
	} {
		t.Run(name, func(t *testing.T) {
			if err := primary.Open(); err != nil && !strings.Contains(err.Error(), "already open") {
				t.Fatal(err)
			}
			mustSync(t, primary)
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			r := open(ctx)
			got := make(chan error)
			go func() { _, err := r.Next(); got <- err }()
			test.end(r, cancel)
			err := <-got
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("next: %v, want %v", err, test.want)
			}
			if _, again := r.Next(); again == nil {
				t.Error("the error is not final")
			}
		})
	}
}

// mustAwait waits until ok reports true, for at most a minute.
func mustAwait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if err := childAwaits(what, ok); err != nil {
		t.Fatal(err)
	}
}

// A stored state that does not fit what the upstream sends is given up.
func TestFollower_StateOfAnotherHistory(t *testing.T) {
	dir := t.TempDir()
	primary, host := newPrimary(t, filepath.Join(dir, "primary"))
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	mustExec(t, host, "INSERT INTO t (s) VALUES ('a')")
	mustCatchUp(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := litestream.SpoilFollowerState(filepath.Join(f.MetaPath(), "follower")); err != nil {
		t.Fatal(err)
	}
	mustExec(t, host, "INSERT INTO t (s) VALUES ('b')")
	mustOpen(t, f)
	mustFollow(t, primary, f)
	if n := f.Stats().Follower.Snapshots; n != 1 {
		t.Errorf("%d snapshots", n)
	}
}

// What was captured and is lost before it was sent costs the followers of a
// primary without replicas a snapshot, and does not stop them for ever.
func TestFollower_CapturedSegmentIsLost(t *testing.T) {
	dir := t.TempDir()
	primary := litestream.NewDB(filepath.Join(dir, "primary"))
	primary.Logger = testLogger(t)
	host := openHost(t, primary.Path())
	mustExec(t, host, "CREATE TABLE t (s)")
	mustOpen(t, primary)
	defer primary.Close()
	f := newFollower(t, filepath.Join(dir, "follower"), primary)
	mustOpen(t, f)
	mustFollow(t, primary, f)
	mustExec(t, host, "INSERT INTO t VALUES ('a')")
	mustCatchUp(t, primary, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	pos := primary.Pos()
	mustExec(t, host, "INSERT INTO t VALUES ('b')")
	if err := primary.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	mustRemoveAll(t, filepath.Join(primary.ShadowWALDir(pos.Generation), litestream.FormatIndex(pos.Index), litestream.FormatOffset(pos.Offset)+litestream.WALSegmentExt))
	mustOpen(t, f)
	mustAwait(t, "a new generation", func() bool { return primary.Pos().Generation != pos.Generation })
	mustFollow(t, primary, f)
}
