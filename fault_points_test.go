package litestream_test

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/fileclient"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
	"example.com/litestream/internal/walcheck"
	"example.com/litestream/replicatest"
)

var (
	faultPoints = flag.String("faultpoints", "100", `how many points TestFaultLife fails at, spread over all; or "all"`)
	faultOnly   = flag.String("faultkind", "", "regular expression of the kinds of faults that TestFaultLife tries")
	faultSeed   = flag.Uint64("faultseed", 0, "seed of TestFaultLife's choices; 0 draws one")
)

// Errors of operations that come too late.
var (
	errPowerLost = errors.New("power lost")
	errKilled    = errors.New("killed")
)

// faultKind is a way to fail at a point.
type faultKind struct {
	name    string
	err     error
	on      []string // operations that it can hit; nil for all
	forever bool     // what it can hit fails from the point on
	lose    bool     // power is lost when the library has confirmed something afterwards
}

var faultKinds = []faultKind{
	{name: "I/O error", err: faultfs.EIO},
	{name: "no space", err: faultfs.ENOSPC},
	{name: "short write", err: faultfs.ShortWrite, on: []string{faultfs.Write}},
	{name: "full disk", err: faultfs.ENOSPC, on: []string{faultfs.Create, faultfs.Write, faultfs.Mkdir, faultfs.Rename, faultfs.Link}, forever: true},
	{name: "failing fsync", err: faultfs.EIO, on: []string{faultfs.Sync, faultfs.SyncDir}, forever: true},
	{name: "failing rename", err: faultfs.EIO, on: []string{faultfs.Rename, faultfs.Link}, forever: true},
	{name: "failed fsync, then power loss", err: faultfs.EIO, on: []string{faultfs.Sync, faultfs.SyncDir}, lose: true},
	{name: "power loss", err: errPowerLost, forever: true},
	{name: "kill, then power loss", err: errKilled, forever: true, lose: true},
}

func (k faultKind) hits(name string) bool { return k.on == nil || slices.Contains(k.on, name) }

// faultPoint is one way in which a life fails.
type faultPoint struct {
	kind faultKind
	n    int  // operation of the file system, or call of the client
	call bool // of the client
	late bool // a call that has taken effect
}

func (p faultPoint) String() string {
	switch {
	case p.late:
		return fmt.Sprintf("lost answer to call %d", p.n)
	case p.call:
		return fmt.Sprintf("failed call %d", p.n)
	}
	return fmt.Sprintf("%s at operation %d", p.kind.name, p.n)
}

// lateMethods are those of which an answer can be lost.
var lateMethods = []string{"WriteSnapshot", "WriteWALSegment", "DeleteGeneration", "DeleteSnapshot", "DeleteWALSegments"}

// allFaultPoints returns every point of a life: each operation and each kind of
// fault that can hit it, and each call.
func allFaultPoints(ops []string, calls []string) (points []faultPoint) {
	for _, kind := range faultKinds {
		for i, name := range ops {
			if kind.hits(name) {
				points = append(points, faultPoint{kind: kind, n: i + 1})
			}
		}
	}
	client := faultKind{name: "client", err: errInjected}
	for i, method := range calls {
		points = append(points, faultPoint{kind: client, n: i + 1, call: true})
		if slices.Contains(lateMethods, method) {
			points = append(points, faultPoint{kind: client, n: i + 1, call: true, late: true})
		}
	}
	return points
}

// bestEffort lists the operations that may fail without a report, and why. All
// else that fails must be reported.
var bestEffort = []struct {
	op, path string   // regular expressions
	steps    []string // nil for all
	why      string
}{
	{`readdir`, `db-litestream/generations`, nil,
		"looking for old generations: tried again with the next one, and at the next open"},
	{`readdir|lstat|remove`, `db-litestream/generations/\w{16}(/ends|/wal(/\w{16}(/\w{16}\.wal\.lz4)?)?)?`,
		[]string{"large commit", "truncate and prune", "open without the wal"},
		"pruning the shadow wal: tried again by the next prune, and at the next open"},
	{`remove`, `replica/generations/\w{16}/wal/\w{16}`, []string{"retention"},
		"removing an emptied directory: tried again at once"},
	{`readdir`, `\.`, []string{"restore"},
		"looking for unfinished restores of other processes: tried again by the next restore"},
	{`link`, `restored`, []string{"restore"},
		"taking the name by a hard link: a rename does instead"},
}

// isBestEffort tells whether an operation of a step, on a path below the
// database's directory, is listed.
func isBestEffort(op, path, step string) bool {
	for _, b := range bestEffort {
		if regexp.MustCompile(`^(`+b.op+`)$`).MatchString(op) && regexp.MustCompile(`^(`+b.path+`)$`).MatchString(filepath.ToSlash(path)) &&
			(b.steps == nil || slices.Contains(b.steps, step)) {
			return true
		}
	}
	return false
}

// One scripted life of a database, once for every operation that it makes and
// every kind of fault, and once for every call of the replica's client. The
// host never notices, the fault is reported, what was confirmed is on the
// replica, and the next start goes on, heals everything, and leaves nothing
// behind. PITFALLS rows 12, 20, 35 and 36
func TestFaultLife(t *testing.T) {
	template := lifeTemplate(t)
	dir := t.TempDir()
	var mu sync.Mutex // guards ops and calls: a restore reads several files at once
	var ops, calls []string
	for range 2 { // the first opens what stays open
		l, err := newLife(dir, template)
		if err != nil {
			t.Fatal(err)
		}
		ops, calls = nil, nil
		l.fs.SetHook(func(op faultfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			ops = append(ops, op.Name)
			return nil
		})
		l.client.SetPlans(func(call replicatest.Call) replicatest.Fault {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, call.Method)
			return replicatest.Fault{}
		})
		l.run(func() bool { return false })
		if err := errors.Join(append(append(l.said, l.broken...), l.host.Close())...); err != nil {
			t.Fatalf("life without faults: %v\n%s", err, &l.log)
		}
	}

	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	only, err := regexp.Compile(*faultOnly)
	if err != nil {
		t.Fatalf("-faultkind: %v", err)
	}
	points := slices.DeleteFunc(allFaultPoints(ops, calls), func(p faultPoint) bool { return !only.MatchString(p.kind.name) })
	stride, offset := 1, 0
	if *faultPoints != "all" {
		var n int
		if _, err := fmt.Sscan(*faultPoints, &n); err != nil || n < 1 {
			t.Fatalf("-faultpoints=%s: want a number or all", *faultPoints)
		}
		if testing.Short() || litestream.RaceEnabled {
			n = min(n, 30)
		}
		stride = max(len(points)/n, 1)
		offset = rng.IntN(stride)
	}
	t.Logf("%d operations and %d calls make %d points; every %d. from %d on with -faultseed=%d", len(ops), len(calls), len(points), stride, offset, seed)

	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(t)
	fired := map[string]int{}
	for i := offset; i < len(points); i += stride {
		p := points[i]
		l, err := newLife(dir, template)
		if err != nil {
			t.Fatal(err)
		}
		hit, errs := testFaultPoint(t, l, p, seed+uint64(i))
		if len(errs) > 0 {
			t.Errorf("%s, %s:\n%s\n%s", p, hit, indent(errors.Join(errs...).Error()), indent(l.log.String()))
		}
		if hit != "" {
			fired[p.kind.name]++
		}
		eventually(t, 10*time.Second, "goroutines end after "+p.String(), func() bool { return runtime.NumGoroutine() <= goroutines })
		eventually(t, 10*time.Second, "descriptors are closed after "+p.String(), func() bool { return openDescriptors(t) <= descriptors })
	}
	t.Logf("points: %v", fired)
}

func indent(s string) string { return "\t" + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n\t") }

// openDescriptors counts the descriptors of the process, where that is known.
func openDescriptors(t testing.TB) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0
	}
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

// testFaultPoint lives once with the fault, then starts again without it. It
// returns what was hit, and what is wrong.
func testFaultPoint(t *testing.T, l *life, p faultPoint, seed uint64) (hit string, errs []error) {
	var n, ended atomic.Int32
	var step string
	excused, confirmations := false, -1
	if !p.call {
		l.fs.SetHook(func(o faultfs.Op) error {
			switch {
			case o.N < p.n, o.N > p.n && !p.kind.forever, !p.kind.hits(o.Name):
				return nil
			}
			if step == "" {
				step, confirmations = l.step, l.confirmations
			}
			if p.kind.err == errPowerLost || p.kind.err == errKilled {
				ended.Store(1)
			}
			return p.kind.err
		})
	} else {
		l.client.SetPlans(func(call replicatest.Call) replicatest.Fault {
			if int(n.Add(1)) != p.n || p.late && !slices.Contains(lateMethods, call.Method) {
				return replicatest.Fault{}
			}
			hit = call.Method
			if p.late {
				return replicatest.Fault{Kind: replicatest.FailLate, Err: p.kind.err}
			}
			return replicatest.Fault{Kind: replicatest.Fail, Err: p.kind.err}
		})
	}
	l.run(func() bool {
		return ended.Load() != 0 || p.kind.lose && confirmations >= 0 && l.confirmations > confirmations
	})
	if !p.call {
		if op, ok := l.fs.Fault(); ok {
			rel, err := filepath.Rel(l.dir, op.Path)
			errs = append(errs, err)
			hit = fmt.Sprintf("%s %s in %q", op.Name, rel, step)
			excused = isBestEffort(op.Name, rel, step)
		}
	}
	if hit != "" && ended.Load() == 0 && !excused && !l.reported(p.kind.err) {
		errs = append(errs, fmt.Errorf("%s is not reported; said: %v", p.kind.err, l.said))
	}
	if p.kind.err == errKilled {
		_ = l.db.Close() // it cannot write any more
		l.fs.Reset()
		errs = append(errs, l.foreignTemps(), l.open(), l.sync())
	}
	powerLoss := hit != "" && (p.kind.err == errPowerLost || p.kind.lose)
	if powerLoss {
		if err := l.losePower(seed); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
	} else if err := l.db.Close(); err != nil {
		errs = append(errs, fmt.Errorf("second close: %w", err))
	}
	l.fs.Reset()
	l.client.SetPlans()
	errs = append(errs, l.startAgain(powerLoss)...)
	return hit, slices.DeleteFunc(append(errs, l.broken...), func(err error) bool { return err == nil })
}

// losePower leaves on disk what a power loss could. It closes what was open:
// none of that reaches the disk.
func (l *life) losePower(seed uint64) error {
	var database []byte
	if err := l.db.WithFile(func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		database = make([]byte, info.Size())
		_, err = f.ReadAt(database, 0)
		return err
	}); err != nil {
		return err
	}
	wal, err := os.ReadFile(l.path("db-wal"))
	if err != nil {
		return err
	}
	// This drops the locks of the process, which has no more use for them.
	shm, err := os.ReadFile(l.path("db-shm"))
	if err != nil {
		return err
	}
	l.fs.SetHook(func(faultfs.Op) error { return errPowerLost })
	_ = l.db.Close() // it cannot write any more
	if err := l.host.Close(); err != nil {
		return err
	}
	l.fs.Reset()
	if err := l.crash.Crash(seed); err != nil {
		return err
	}
	tearWAL(wal, shm, rand.New(rand.NewPCG(seed, 1)))
	for _, name := range []string{"db-wal", "db-shm"} {
		if err := os.Remove(l.path(name)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return errors.Join(os.WriteFile(l.path("db"), database, 0o600), os.WriteFile(l.path("db-wal"), wal, 0o600), l.foreignTemps())
}

// tearWAL does to a WAL what a power loss may, with synchronous=NORMAL: frames
// that no checkpoint had begun to copy need not have been synced. The database
// itself is: SQLite syncs it before a checkpoint ends, and nothing else writes
// to it. The -shm file tells how far checkpoints came, see
// https://www.sqlite.org/walformat.html#the_wal_index_file_format.
func tearWAL(wal, shm []byte, rng *rand.Rand) {
	const header, frameHeader, sector = 32, 24, 512
	if len(wal) < header || len(shm) < 136 || string(shm[32:40]) != string(wal[16:24]) {
		return // restarted: all frames were copied, and none was added
	}
	frame := frameHeader + int(binary.BigEndian.Uint32(wal[8:]))
	synced := header + int(binary.NativeEndian.Uint32(shm[128:]))*frame // nBackfillAttempted
	switch rng.IntN(4) {
	case 0:
		return
	case 1:
		clear(wal[synced:])
		return
	}
	cut := synced + rng.IntN(len(wal)-synced+1)
	torn := rng.IntN(2) == 0
	for at := cut; at < len(wal); at++ {
		if at == cut || at%sector == 0 {
			torn = rng.IntN(2) == 0
		}
		if torn {
			wal[at] = 0
		}
	}
}

// foreignTemps makes unfinished files look like those of a process that ended
// long ago: a process never removes its own.
func (l *life) foreignTemps() error {
	names, err := l.unfinished()
	if err != nil {
		return err
	}
	old := time.Now().Add(-time.Hour)
	for i, name := range names {
		base, _, _ := strings.Cut(strings.TrimSuffix(name, ".tmp"), "-")
		renamed := fmt.Sprintf("%s%016x-%d.tmp", base[:len(base)-16], i, i)
		if err := errors.Join(os.Rename(name, renamed), os.Chtimes(renamed, old, old)); err != nil {
			return err
		}
	}
	return nil
}

// startAgain checks what the life left, and that the next process goes on.
func (l *life) startAgain(powerLoss bool) (errs []error) {
	fail := func(what string, err error) bool {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
		return err != nil
	}
	client := fileclient.NewFileReplicaClient(l.path("replica"))
	if _, err := os.Lstat(l.path("restored")); err == nil && powerLoss {
		_, err := lifeRows(l.path("restored")) // a restore that got its name is whole
		fail("restored before the power loss", errors.Join(err, os.Remove(l.path("restored"))))
	}
	fail("what is confirmed", l.restore(fsys.OS, client))
	if powerLoss && fail("host", l.openHost()) {
		return errs
	}
	n, err := checkLifeRows(l.host)
	if !fail("host's rows", err) && n != l.rows && !powerLoss {
		errs = append(errs, fmt.Errorf("the host finds %d rows of %d", n, l.rows))
	}
	l.rows = n // a power loss may have taken the newest
	l.commit(10)
	l.said = nil
	fail("open", l.open())
	fail("note", errors.Join(l.said...))
	l.confirmed = 0
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"sync", l.sync},
		{"restore", func() error { return l.restore(fsys.OS, client) }},
		{"checkpoint", func() error { return l.checkpoint(litestream.CheckpointModeTruncate) }},
		{"second sync", l.sync},
		{"snapshot", l.snapshot},
		{"retention", func() error { return l.db.Replicas[0].EnforceRetention(ctx) }},
		{"second retention", func() error { return l.db.Replicas[0].EnforceRetention(ctx) }}, // empty generations
		{"second restore", func() error { return l.restore(fsys.OS, client) }},
	} {
		if fail(step.name, step.run()) {
			break
		}
	}
	fail("close", errors.Join(l.host.Close(), l.close()))
	meta, err := walcheck.MetaDir(l.db.MetaPath())
	fail("meta directory", err)
	fail("replica", checkReplicaAgainst(client, meta))
	names, err := l.unfinished()
	if !fail("unfinished files", err) && len(names) > 0 {
		errs = append(errs, fmt.Errorf("left behind: %q", names))
	}
	return errs
}
