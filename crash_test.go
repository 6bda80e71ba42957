package litestream_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
)

var crashes = flag.Int("crashes", 10, "how often each TestNoConfirmedCommitIsLostByKill test kills its process")

// crashRow returns what row n holds, so that a restored row can be judged.
func crashRow(n int) string { return strings.Repeat(strconv.Itoa(n)+" ", n%100) }

// crashSettings are how a process uses its databases.
type crashSettings struct {
	small     bool // small checkpoint sizes, short intervals
	snapshots bool // one after the other
	modes     bool // explicit checkpoints of all modes
	hostFirst bool // the host opens the database before the library does
}

var crashStyles = map[string]crashSettings{
	"default":   {},
	"hostFirst": {hostFirst: true},
	"small":     {small: true},
	"snapshots": {small: true, snapshots: true},
	"modes":     {modes: true, snapshots: true, hostFirst: true},
}

// crashChild writes to databases and replicates them until it is killed, or
// until stdin ends. It tells, of database i:
//
//	start i n   its first sync has succeeded; the host finds n rows
//	ok i n      rows up to n are on the replica
//	log i ...   the library's log
//	end i n     closed after n rows
func crashChild(args []string) error {
	dir, style := args[0], crashStyles[args[1]]
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		awaitEnd()
		close(stop)
	}()
	errs := make(chan error)
	for i := range n {
		go func() {
			if err := runCrashDatabase(filepath.Join(dir, strconv.Itoa(i)), i, style, stop); err != nil {
				errs <- fmt.Errorf("database %d: %w", i, err)
				return
			}
			errs <- nil
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

type tellLog int

func (i tellLog) Write(p []byte) (int, error) {
	tell("log %d %s", int(i), strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func runCrashDatabase(dir string, i int, set crashSettings, stop <-chan struct{}) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, "db")
	db := childDB(path, filepath.Join(dir, "replica"), tellLog(i))
	if set.small {
		db.MinCheckpointPageN, db.MaxCheckpointPageN = 10, 50
		db.MonitorDelayInterval = time.Millisecond
		db.ShadowRetentionN = 2
		db.Replicas[0].SyncInterval = 5 * time.Millisecond
	}
	if err := db.EnsureExists(ctx); err != nil {
		return err
	}
	var host *sql.DB
	steps := []func() error{
		db.Open,
		func() (err error) { host, err = childHost(path); return err },
	}
	if set.hostFirst {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, host.Close(), db.Close()) }()
	if _, err := host.Exec("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, s TEXT)"); err != nil {
		return err
	}
	if err := db.SyncAndWait(ctx); err != nil {
		return fmt.Errorf("first sync: %w", err)
	}
	n, err := countCrashRows(host)
	if err != nil {
		return err
	}
	tell("start %d %d", i, n)

	if set.snapshots {
		ctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		defer func() { cancel(); wg.Wait() }()
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := db.Replicas[0].Snapshot(ctx); err != nil && ctx.Err() == nil {
					tell("failed snapshot: %v", err)
				}
				time.Sleep(rand.N(20 * time.Millisecond)) // a pace, so that kills fall between snapshots too
			}
		})
	}
	for {
		select {
		case <-stop:
			if err := errors.Join(host.Close(), db.Close()); err != nil {
				return err
			}
			tell("end %d %d", i, n)
			return nil
		default:
		}
		rows := 1 + rand.N(5)
		if rand.N(100) == 0 {
			rows = 300
		}
		if err := addCrashRows(host, n, rows); err != nil {
			return err
		}
		n += rows
		switch rand.N(20) {
		case 0, 1, 2:
			if err := db.SyncAndWait(ctx); err != nil {
				return err
			}
			tell("ok %d %d", i, n)
		case 3:
			if !set.modes {
				break
			}
			modes := []string{litestream.CheckpointModePassive, litestream.CheckpointModeFull,
				litestream.CheckpointModeRestart, litestream.CheckpointModeTruncate}
			if err := db.Checkpoint(ctx, modes[rand.N(len(modes))]); err != nil && !errors.Is(err, litestream.ErrCheckpointBusy) {
				return err
			}
		case 4:
			time.Sleep(rand.N(20 * time.Millisecond)) // let the library's own loops come first
		}
	}
}

func addCrashRows(host *sql.DB, n, rows int) error {
	tx, err := host.Begin()
	if err != nil {
		return err
	}
	for k := range rows {
		if _, err := tx.Exec("INSERT INTO t VALUES (?, ?)", n+k+1, crashRow(n+k+1)); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

// countCrashRows proves that the rows are 1 to n, each as it was written, and
// returns n.
func countCrashRows(db *sql.DB) (n int, err error) {
	rows, err := db.Query("SELECT n, s FROM t ORDER BY n")
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var got int
		var s string
		if err := rows.Scan(&got, &s); err != nil {
			return 0, err
		}
		if n++; got != n || s != crashRow(n) {
			return 0, fmt.Errorf("row %d is (%d, %q)", n, got, s)
		}
	}
	return n, rows.Err()
}

// crashState is what a test knows of one database.
type crashState struct {
	started   bool // this time
	confirmed int  // rows
	atLeast   int  // rows that the host must find
	reasons   map[string]int
}

// crashTest kills processes and judges what they leave.
type crashTest struct {
	testing.TB
	dir    string
	states []crashState
}

func newCrashTest(t testing.TB, databases int) *crashTest {
	c := &crashTest{TB: t, dir: t.TempDir(), states: make([]crashState, databases)}
	for i := range c.states {
		c.states[i].reasons = make(map[string]int)
	}
	return c
}

// start starts a process. The channel is closed when all of its output has
// been read, and so the states are complete. ready is called when each
// database has started.
func (c *crashTest) start(style string, ready func()) (*childProcess, <-chan struct{}) {
	p := startChild(c, "crash", c.dir, style, strconv.Itoa(len(c.states)))
	for i := range c.states {
		c.states[i].started = false
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		started := 0
		for p.stdout.Scan() {
			if c.hear(p.stdout.Text()) == "start" {
				if started++; started == len(c.states) {
					ready()
				}
			}
		}
	}()
	return p, done
}

func (c *crashTest) hear(line string) (word string) {
	word, rest, _ := strings.Cut(line, " ")
	id, rest, _ := strings.Cut(rest, " ")
	i, err := strconv.Atoi(id)
	if err != nil || i >= len(c.states) {
		c.Errorf("child process: %s", line)
		return ""
	}
	st := &c.states[i]
	if word == "log" {
		kind, reason, _ := strings.Cut(rest, ": ")
		switch {
		case strings.HasPrefix(kind, "new generation "):
			st.reasons[reason]++
		case strings.HasPrefix(kind, "snapshot "):
		case kind == "no replica holds a database" && st.confirmed == 0:
		default:
			c.Errorf("database %d logged: %s", i, rest)
		}
		return word
	}
	n, err := strconv.Atoi(rest)
	if err != nil {
		c.Errorf("child process: %s", line)
		return ""
	}
	switch word {
	case "start":
		st.started = true
		if n < st.atLeast {
			c.Errorf("database %d starts with %d rows; its replica had %d", i, n, st.atLeast)
		}
	case "ok", "end":
		st.confirmed = n
	}
	return word
}

// killOnce starts a process, kills it after a time, counted from the moment at
// which all its databases have started if that was awaited, and checks what
// can be restored.
func (c *crashTest) killOnce(style string, await bool, after time.Duration) {
	c.Helper()
	ready := make(chan struct{})
	p, done := c.start(style, func() { close(ready) })
	if await {
		select {
		case <-ready:
		case <-done:
			c.Fatalf("child process ended by itself: %v\n%s", p.ended(), &p.stderr)
		}
	}
	select {
	case <-time.After(after):
	case <-done:
		c.Fatalf("child process ended by itself: %v\n%s", p.ended(), &p.stderr)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		c.Fatal(err)
	}
	<-done
	p.kill()
	if p.stderr.Len() > 0 {
		c.Errorf("child process: %s", &p.stderr)
	}
	for i := range c.states {
		c.check(i)
	}
}

// check restores a database and compares it with what was confirmed.
func (c *crashTest) check(i int) {
	c.Helper()
	st := &c.states[i]
	path := filepath.Join(c.TempDir(), "restored")
	opt := litestream.NewRestoreOptions()
	opt.Logger = discardLogger()
	opt.IntegrityCheck = litestream.IntegrityCheckFull
	_, err := litestream.RestoreLatest(ctx, c.client(i), path, opt)
	if st.confirmed == 0 && (errors.Is(err, litestream.ErrNoGeneration) || errors.Is(err, litestream.ErrNoSnapshots)) {
		return
	} else if err != nil {
		c.Fatalf("database %d, %d rows confirmed: %v", i, st.confirmed, err)
	}
	restored, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		c.Fatal(err)
	}
	defer restored.Close()
	n, err := countCrashRows(restored)
	if err != nil && st.confirmed == 0 && strings.Contains(err.Error(), "no such table") {
		return
	} else if err != nil {
		c.Fatalf("database %d, restored: %v", i, err)
	}
	if n < st.confirmed {
		c.Fatalf("database %d: %d rows restored of %d that were confirmed", i, n, st.confirmed)
	}
	st.atLeast = n
}

func (c *crashTest) client(i int) litestream.ReplicaClient {
	return fileclient.NewFileReplicaClient(filepath.Join(c.dir, strconv.Itoa(i), "replica"))
}

// finish lets a last process end by itself, and checks that what it leaves is
// all it wrote.
func (c *crashTest) finish(style string) {
	c.Helper()
	ready := make(chan struct{})
	p, done := c.start(style, func() { close(ready) })
	select {
	case <-ready:
	case <-done:
		c.Fatalf("child process ended by itself: %v\n%s", p.ended(), &p.stderr)
	}
	if err := p.stdin.Close(); err != nil {
		c.Fatal(err)
	}
	<-done
	if err := p.ended(); err != nil {
		c.Fatalf("child process: %v\n%s", err, &p.stderr)
	}
	for i := range c.states {
		c.check(i)
		if st := c.states[i]; st.atLeast != st.confirmed {
			c.Errorf("database %d was closed with %d rows and restored with %d", i, st.confirmed, st.atLeast)
		}
		checkReplicaOf(c, c.client(i), checkMeta(c, filepath.Join(c.dir, strconv.Itoa(i), "db"+litestream.MetaDirSuffix)))
	}
}

// crashReasons are why a generation may begin around a kill. The last needs a
// restart of the WAL that nobody captured before the kill.
var crashReasons = []string{
	"first start",
	"nothing was captured of the last generation",
	"wal restarted while closed",
}

// reasons returns how many generations began, by reason.
func (c *crashTest) reasons() map[string]int {
	c.Helper()
	sum := make(map[string]int)
	for i, st := range c.states {
		for reason, n := range st.reasons {
			sum[reason] += n
			if !slices.Contains(crashReasons, reason) {
				c.Errorf("database %d began a generation: %s", i, reason)
			}
		}
	}
	return sum
}

const killedLeaveFiles = "killed processes leave unfinished files, which are removed after five minutes"

func discardLogger() *log.Logger { return log.New(io.Discard, "", 0) }

// What SyncAndWait confirmed survives the process, at whatever moment it is
// killed; the next one goes on by itself, nearly always in the same generation.
func TestNoConfirmedCommitIsLostByKill(t *testing.T) {
	styles := slices.Sorted(maps.Keys(crashStyles))
	c := newCrashTest(t, 1)
	leaveUnchecked(t, tempPart, killedLeaveFiles)
	unready := 0
	for round := range *crashes {
		await := rand.N(4) > 0 // else in the middle of opening, or soon after
		after := rand.N(250 * time.Millisecond)
		if !await {
			after /= 4
		}
		c.killOnce(styles[round%len(styles)], await, after)
		if !c.states[0].started {
			unready++
		}
		if round%10 == 9 {
			checkReplica(t, c.client(0))
		}
	}
	c.finish("default")
	t.Logf("%d kills, %d of them before the first sync; %d rows; generations by reason: %v", *crashes, unready, c.states[0].confirmed, c.reasons())
}

// Several databases of one process do not get into each other's way.
func TestNoConfirmedCommitIsLostByKillOfManyDatabases(t *testing.T) {
	styles := slices.Sorted(maps.Keys(crashStyles))
	c := newCrashTest(t, 5)
	leaveUnchecked(t, tempPart, killedLeaveFiles)
	for round := range *crashes {
		c.killOnce(styles[round%len(styles)], rand.N(4) > 0, rand.N(250*time.Millisecond))
	}
	c.finish("default")
	rows := 0
	for _, st := range c.states {
		rows += st.confirmed
	}
	t.Logf("%d kills of 5 databases; %d rows; generations by reason: %v", *crashes, rows, c.reasons())
}

// stuckClient gives the first bytes of one kind of file, says so, and then
// nothing more.
type stuckClient struct {
	litestream.ReplicaClient
	in string // "snapshot" or "segment"
}

func (c stuckClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	rc, err := c.ReplicaClient.SnapshotReader(ctx, generation, index)
	if err != nil || c.in != "snapshot" {
		return rc, err
	}
	return stuckReader{io.LimitReader(rc, 300<<10), rc}, nil
}

func (c stuckClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	rc, err := c.ReplicaClient.WALSegmentReader(ctx, pos)
	if err != nil || c.in != "segment" {
		return rc, err
	}
	return stuckReader{io.LimitReader(rc, 100), rc}, nil
}

type stuckReader struct {
	io.Reader
	io.Closer
}

func (r stuckReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != io.EOF {
		return n, err
	}
	tell("stuck")
	select {}
}

// restoreChild restores a database, and gets stuck on the way.
func restoreChild(args []string) error {
	db := litestream.NewDB(args[0])
	client := stuckClient{fileclient.NewFileReplicaClient(args[1]), args[2]}
	db.Replicas = []*litestream.Replica{litestream.NewReplica(db, "stuck", client)}
	db.Logger = discardLogger()
	return db.EnsureExists(ctx)
}

// A process that is killed in the middle of a restore leaves nothing that the
// next one takes for a database, or that is in its way; and what it leaves does
// not fill the disk.
func TestKilledRestoreIsNotInTheWay(t *testing.T) {
	dir := t.TempDir()
	db := newDB(t, dir)
	host := openHost(t, db.Path())
	mustExec(t, host, "CREATE TABLE t (b)")
	mustOpen(t, db)
	mustExec(t, host, "INSERT INTO t VALUES (randomblob(2000000))")
	mustSync(t, db)
	if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	mustExec(t, host, "INSERT INTO t VALUES (randomblob(10000))")
	mustSync(t, db)
	if _, err := db.Replicas[0].Snapshot(ctx); err != nil { // of the first two megabytes
		t.Fatal(err)
	}
	mustExec(t, host, "INSERT INTO t VALUES (randomblob(10000))")
	mustSync(t, db)
	want, err := os.ReadFile(mustRestore(t, db.Replicas[0].Client()))
	if err != nil {
		t.Fatal(err)
	}

	for _, in := range []string{"snapshot", "segment"} {
		t.Run(in, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "new", "db")
			list := func() (names []string) {
				ents, err := os.ReadDir(filepath.Dir(path))
				if err != nil {
					t.Fatal(err)
				}
				for _, ent := range ents {
					names = append(names, ent.Name())
				}
				return names
			}
			var litter []string
			for range 2 {
				c := startChild(t, "restore", path, filepath.Join(dir, "replica"), in)
				c.mustHear(t, "stuck")
				c.kill()
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("after the kill: %v", err)
				}
				litter = list()
			}
			if len(litter) < 2 {
				t.Fatalf("two killed restores left %v", litter)
			}
			// One may still be at work; the others are too old for that.
			for _, name := range litter[1:] {
				old := time.Now().Add(-time.Hour)
				if err := os.Chtimes(filepath.Join(filepath.Dir(path), name), old, old); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), "db.mine.tmp"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			again := litestream.NewDB(path)
			again.Replicas = []*litestream.Replica{litestream.NewReplica(again, "file", db.Replicas[0].Client())}
			quiet(again)
			if err := again.EnsureExists(ctx); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("restored database differs at %#x", firstDifference(got, want))
			}
			want := []string{"db", litter[0], "db.mine.tmp"}
			if got := list(); !slices.Equal(got, want) {
				t.Fatalf("beside the database there are %v, want %v", got, want)
			}
		})
	}
}

// A replica that lagged when the process ended stands in an index that the
// next process knows from its files alone.
func TestLaggingReplicaGoesOnAfterRestart(t *testing.T) {
	for _, atEnd := range []bool{false, true} {
		t.Run(fmt.Sprintf("atEndOfIndex=%t", atEnd), func(t *testing.T) {
			dir := t.TempDir()
			host := openHost(t, filepath.Join(dir, "db"))
			mustExec(t, host, "CREATE TABLE t (n)")
			db := newDB(t, dir)
			db.Replicas[0].MonitorEnabled = false
			mustOpen(t, db)
			mustSync(t, db)
			if !atEnd {
				mustExec(t, host, "INSERT INTO t VALUES (0)")
				if err := db.Sync(ctx); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if err := db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
					t.Fatal(err)
				}
				mustExec(t, host, "INSERT INTO t VALUES (1)")
				if err := db.Sync(ctx); err != nil {
					t.Fatal(err)
				}
			}
			left, at := db.Pos(), db.Replicas[0].Pos()
			if left.Index != at.Index+3 {
				t.Fatalf("database at %s, replica at %s", left, at)
			}
			ended, cancel := context.WithCancel(ctx)
			cancel()
			if err := db.Shutdown(ended); !errors.Is(err, context.Canceled) {
				t.Fatalf("shutdown: %v", err)
			}

			mustOpen(t, db)
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if err := db.SyncAndWait(ctx); err != nil {
				t.Fatal(err)
			}
			if got := db.Replicas[0].Pos(); got != left {
				t.Fatalf("the replica is at %s, want %s", got, left)
			}
			mustEqualRestore(t, db, db.Replicas[0].Client())
		})
	}
}
