package litestream_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/walcheck"
)

var (
	soakFlag = flag.Duration("soak", 0, "how long TestSoak runs; 0 skips it")
	soakSeed = flag.Uint64("soak.seed", 0, "seed of TestSoak's choices; 0 draws one")
)

func init() { childRoles["wander"] = wanderChild }

// soakSchema counts what each writer has committed, in the transaction that
// commits it.
const soakSchema = `
	CREATE TABLE t (writer INTEGER, n INTEGER, x BLOB, PRIMARY KEY (writer, n));
	CREATE TABLE counter (writer INTEGER PRIMARY KEY, n INTEGER);
	CREATE TABLE pile (id INTEGER PRIMARY KEY, x BLOB);
	CREATE INDEX t_x ON t (x);`

const soakWriters = 2

// soakCounters reads what each writer has committed, and proves that the rows
// are those that the counters stand for.
func soakCounters(q interface {
	Query(query string, args ...any) (*sql.Rows, error)
}) (counters [soakWriters]int, err error) {
	rows, err := q.Query("SELECT writer, n, (SELECT ifnull(max(n), 0) FROM t WHERE t.writer = counter.writer) FROM counter")
	if err != nil {
		return counters, err
	}
	defer rows.Close()
	for rows.Next() {
		var writer, n, last int
		if err := rows.Scan(&writer, &n, &last); err != nil {
			return counters, err
		}
		if n != last {
			return counters, fmt.Errorf("writer %d has counted %d rows; the last one is %d", writer, n, last)
		}
		counters[writer] = n
	}
	return counters, rows.Err()
}

// wanderChild opens the database, reads and closes it, again and again, until
// stdin ends.
func wanderChild(args []string) error {
	stop := make(chan struct{})
	go func() {
		awaitEnd()
		close(stop)
	}()
	for visits := 0; ; visits++ {
		select {
		case <-stop:
			tell("visits %d", visits)
			return nil
		case <-time.After(rand.N(100 * time.Millisecond)):
		}
		if err := wander(args[0]); err != nil {
			return fmt.Errorf("visit %d: %w", visits, err)
		}
	}
}

func wander(path string) (err error) {
	host, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(60000)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	tx, err := host.Begin()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	before, err := soakCounters(tx)
	if err != nil || rand.N(5) > 0 {
		return err
	}
	time.Sleep(rand.N(500 * time.Millisecond))
	after, err := soakCounters(tx)
	if err == nil && after != before {
		err = fmt.Errorf("one transaction reads %d and %d", before, after)
	}
	return err
}

// soak is a host, its database, and a library that is opened and closed.
type soak struct {
	*testing.T
	dir    string
	rnd    *rand.Rand // of the operator alone
	client *flakyClient
	host   *sql.DB // of the operator
	hosts  []*sql.DB
	db     *litestream.DB

	stop    chan struct{}
	wg      sync.WaitGroup
	commits atomic.Int64
	reads   atomic.Int64

	confirmed [soakWriters]int // on the replica
	done      map[string]int   // what the operator did
	refused   int              // of that, with an injected error or a lock that was busy

	log struct {
		sync.Mutex
		generations map[string]string // name to reason
		stray       []string          // lines that nobody expects
	}
	begun uint64 // generations, of DBs that are closed
}

// Write receives the library's log.
func (s *soak) Write(p []byte) (int, error) {
	line := strings.TrimRight(string(p), "\n")
	s.log.Lock()
	defer s.log.Unlock()
	if rest, ok := strings.CutPrefix(line, "new generation "); ok {
		name, reason, _ := strings.Cut(rest, ": ")
		s.log.generations[name] = reason
		return len(p), nil
	}
	for _, known := range []string{"snapshot ", soakBusy, "retention: deleted generation ", errInjected.Error(), errIteration.Error(), ": recovered"} {
		if strings.Contains(line, known) {
			return len(p), nil
		}
	}
	s.log.stray = append(s.log.stray, line)
	return len(p), nil
}

func (s *soak) ended() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// pause waits for a random time below d and reports whether the soak goes on.
func (s *soak) pause(d time.Duration) bool {
	select {
	case <-s.stop:
		return false
	case <-time.After(rand.N(d)):
		return true
	}
}

// connect opens a pool of one connection with patience for every lock.
func (s *soak) connect(pragmas ...string) *sql.DB {
	s.Helper()
	host := openHost(s, filepath.Join(s.dir, "db"), append(pragmas, "busy_timeout(60000)", "synchronous(NORMAL)")...)
	host.SetMaxOpenConns(1)
	s.hosts = append(s.hosts, host)
	return host
}

// repeat calls fn until the soak ends or it fails.
func (s *soak) repeat(what string, fn func() error) {
	s.wg.Go(func() {
		for !s.ended() {
			if err := fn(); err != nil {
				s.Errorf("host: %s: %v", what, err)
				return
			}
		}
	})
}

// open opens the library with short intervals.
func (s *soak) open() {
	s.Helper()
	db := litestream.NewDB(filepath.Join(s.dir, "db"))
	db.Logger = discardLogger()
	db.Logger.SetOutput(s)
	db.MinCheckpointPageN, db.MaxCheckpointPageN = 100, 1000
	db.CheckpointInterval = time.Second
	db.ShadowRetentionN = 1 + s.rnd.IntN(4)
	r := litestream.NewReplica(db, "flaky", s.client)
	r.Logger = db.Logger
	r.SyncInterval = 50 * time.Millisecond
	r.SnapshotInterval = 2 * time.Second
	r.Retention = 4 * time.Second
	r.RetentionCheckInterval = time.Second
	r.ValidationInterval = 3 * time.Second
	db.Replicas = append(db.Replicas, r)
	if err := db.Open(); err != nil {
		s.Fatal(err)
	}
	s.db = db
}

// limit bounds a call of the library, which nobody keeps waiting for long.
func (s *soak) limit() (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 2*time.Minute)
}

// soakBusy is in the error of a validation that did not get the write lock
// within BusyTimeout: the host's VACUUM holds it for longer.
const soakBusy = "take write lock: database is locked"

// tolerate judges what a call of the library returned while its replica was
// flaky and other connections were busy.
func (s *soak) tolerate(what string, err error) bool {
	s.Helper()
	if err == nil {
		return true
	}
	s.refused++
	for _, known := range []error{errInjected, errIteration, litestream.ErrCheckpointBusy} {
		if errors.Is(err, known) {
			return false
		}
	}
	if strings.Contains(err.Error(), soakBusy) {
		return false
	}
	s.Errorf("%s: %v", what, err)
	return false
}

// close ends the library, now and then without its last upload.
func (s *soak) close() {
	s.Helper()
	ctx, cancel := s.limit()
	defer cancel()
	abrupt := s.rnd.IntN(3) == 0
	if abrupt {
		cancel()
	}
	if err := s.db.Shutdown(ctx); !abrupt || !errors.Is(err, context.Canceled) {
		s.tolerate("close", err)
	}
	st := s.db.Stats()
	s.begun += st.Generations
	if n := st.Replicas[0].ChecksumMismatches; n > 0 {
		s.Errorf("validation found %d mismatches", n)
	}
}

// operate does one of the things that a host does with the library.
func (s *soak) operate() (what string) {
	s.Helper()
	ctx, cancel := s.limit()
	defer cancel()
	r := s.db.Replicas[0]
	switch n := s.rnd.IntN(100); {
	case n < 30:
		seen, err := soakCounters(s.host)
		if err != nil {
			s.Errorf("host: %v", err)
		}
		if s.tolerate("sync", s.db.SyncAndWait(ctx)) {
			s.confirmed = seen
		}
		return "sync"
	case n < 45:
		mode := checkpointModes[s.rnd.IntN(len(checkpointModes))]
		s.tolerate("checkpoint", s.db.Checkpoint(ctx, mode))
		return "checkpoint"
	case n < 55:
		_, err := r.Snapshot(ctx)
		s.tolerate("snapshot", err)
		return "snapshot"
	case n < 62:
		s.tolerate("validate", r.Validate(ctx))
		return "validate"
	case n < 67:
		s.tolerate("retention", r.EnforceRetention(ctx))
		return "retention"
	case n < 77:
		s.restore()
		return "restore"
	case n < 84:
		s.client.on.Store(s.rnd.IntN(4) > 0)
		return "change of weather"
	case n < 92:
		s.close()
		if s.rnd.IntN(2) == 0 {
			s.pause(2 * time.Second)
		}
		s.open()
		return "cycle"
	}
	s.pause(2 * time.Second)
	return "rest"
}

// restore restores through the inner client, which is not flaky, and proves
// that what was confirmed is in it.
func (s *soak) restore() {
	s.Helper()
	path := filepath.Join(s.dir, fmt.Sprintf("restored-%d", s.done["restore"]))
	opt := litestream.RestoreOptions{Logger: discardLogger(), IntegrityCheck: litestream.IntegrityCheckFull}
	if _, err := litestream.RestoreLatest(ctx, s.client.Unwrap(), path, opt); err != nil {
		empty := errors.Is(err, litestream.ErrNoGeneration) || errors.Is(err, litestream.ErrNoSnapshots)
		if empty && s.confirmed == [soakWriters]int{} {
			return
		}
		s.Fatalf("restore: %v", err)
	}
	host, err := sql.Open("sqlite", "file:"+path+"?mode=ro&immutable=1")
	if err != nil {
		s.Fatal(err)
	}
	got, err := soakCounters(host)
	if err := errors.Join(err, host.Close(), os.Remove(path)); err != nil {
		s.Fatalf("restored: %v", err)
	}
	for i, n := range s.confirmed {
		if got[i] < n {
			s.Fatalf("restored are %d rows of the writers, confirmed were %d", got, s.confirmed)
		}
	}
}

// soakReasons are why a generation may begin: the host restarted the WAL while
// nobody watched, or a read from the replica failed in the middle, twice at the
// same place.
var soakReasons = []string{
	"first start",
	"wal restarted while closed",
	"replica flaky: read replica's segment ",
}

// account checks that every generation has a good reason and was counted.
func (s *soak) account() {
	s.Helper()
	sum := make(map[string]int)
	for name, reason := range s.log.generations {
		known := ""
		for _, prefix := range soakReasons {
			if strings.HasPrefix(reason, prefix) {
				known = prefix
			}
		}
		if known == "" {
			s.Errorf("generation %s began: %s", name, reason)
		}
		sum[known]++
	}
	if sum["first start"] != 1 || uint64(len(s.log.generations)) != s.begun {
		s.Errorf("%d generations were counted, and logged were %v", s.begun, sum)
	}
	names, err := s.client.Unwrap().Generations(ctx)
	if err != nil {
		s.Fatal(err)
	}
	for _, name := range names {
		if _, ok := s.log.generations[name]; !ok {
			s.Errorf("the replica holds generation %s, which never began", name)
		}
	}
	for _, line := range s.log.stray {
		s.Errorf("logged: %s", line)
	}
	s.Logf("generations by reason: %v; on the replica: %d", sum, len(names))
}

// checkShadow checks the invariants of the shadow WAL, in which the WAL indexes
// that nobody needs may be gone.
func checkShadow(t testing.TB, db *litestream.DB) {
	t.Helper()
	pos := db.Pos()
	var segments []walcheck.Segment
	first := pos.Index
	dir := db.ShadowWALDir(pos.Generation)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		index, err := litestream.ParseIndex(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return err
		}
		offset, err := litestream.ParseOffset(strings.TrimSuffix(d.Name(), litestream.WALSegmentExt))
		if err != nil {
			return err
		}
		first = min(first, index)
		segments = append(segments, walcheck.Segment{Index: index, Offset: offset, Data: readFile(t, path)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wals, err := walcheck.Generation([]int{first}, segments)
	if err != nil {
		t.Errorf("shadow wal: %v", err)
	}
	if got := int64(len(wals[pos.Index])); got != pos.Offset {
		t.Errorf("shadow wal ends at %d, the position is %s", got, pos)
	}
}

// A host, its visitors and its replica do for a long time all that they may
// do, and nothing is lost: no commit of the host fails, every restore holds
// what was confirmed, and in the end the replica is the database.
func TestSoak(t *testing.T) {
	if *soakFlag <= 0 {
		t.Skip("a soak takes as long as it is told to: run with -soak 60s")
	}
	goroutines := runtime.NumGoroutine()
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-soak.seed=%d", seed)
	s := &soak{T: t, dir: t.TempDir(), rnd: rand.New(rand.NewPCG(seed, 1)), stop: make(chan struct{}), done: make(map[string]int)}
	s.log.generations = make(map[string]string)
	s.client = newFlakyClient(fileclient.NewFileReplicaClient(filepath.Join(s.dir, "replica")), seed)
	s.host = s.connect()
	mustExec(t, s.host, soakSchema)
	for i := range soakWriters {
		s.writer(i)
	}
	s.keeper()
	s.reader(20 * time.Millisecond)
	s.reader(4 * time.Second)
	var end sync.Once
	rest := func() { end.Do(func() { close(s.stop); s.wg.Wait() }) }
	defer rest()
	wanderers := []*childProcess{startChild(t, "wander", filepath.Join(s.dir, "db")), startChild(t, "wander", filepath.Join(s.dir, "db"))}

	s.open()
	defer func() { s.db.Close() }() // if the test fails
	s.client.on.Store(true)
	for began := time.Now(); time.Since(began) < *soakFlag && !t.Failed(); {
		s.done[s.operate()]++
		s.pause(100 * time.Millisecond)
	}
	rest()
	visits := 0
	for _, c := range wanderers {
		var n int
		if err := c.stdin.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(c.mustHear(t, "visits"), &n); err != nil {
			t.Fatal(err)
		}
		if err := c.ended(); err != nil {
			t.Fatalf("child process: %v\n%s", err, &c.stderr)
		}
		visits += n
	}

	s.client.on.Store(false)
	mustSync(t, s.db)
	if want, err := soakCounters(s.host); err != nil {
		t.Fatal(err)
	} else {
		s.confirmed = want
	}
	s.restore()
	checkShadow(t, s.db)
	if err := s.db.Replicas[0].Validate(ctx); err != nil {
		t.Error(err)
	}
	mustEqualRestore(t, s.db, s.client)
	size := len(readDatabase(t, s.db))
	s.close()
	checkReplica(t, s.client.Unwrap())
	for _, dir := range []string{s.db.MetaPath(), filepath.Join(s.dir, "replica")} {
		if left := tempFiles(t, dir); len(left) > 0 {
			t.Errorf("unfinished files are left: %v", left)
		}
	}
	s.account()
	s.Logf("%d commits, %d reads, %d visits, %d faults; %v, %d of them refused; %d bytes of database",
		s.commits.Load(), s.reads.Load(), visits, s.client.faults.Load(), s.done, s.refused, size)
	for _, host := range s.hosts {
		if err := host.Close(); err != nil {
			t.Fatal(err)
		}
	}
	goroutinesSettle(t, goroutines)
}
