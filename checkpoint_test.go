package litestream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
)

// modelKeeper returns a keeper over a model in which other connections do
// something between any two of its steps.
func modelKeeper(seed uint64, fault func(op string) error) (*keeper, *walModel) {
	m := &walModel{readers: make(map[*modelConn]int), rng: rand.New(rand.NewPCG(seed, 3)), fault: fault}
	m.commits = 1 + m.rng.IntN(4)
	readers := []*modelConn{{m: m}, {m: m}}
	host := func() { m.host(readers) }
	k := &keeper{
		open: func(context.Context) (sqliteConn, error) {
			if err := fault("open"); err != nil {
				return nil, err
			}
			return &modelConn{m: m, host: host}, nil
		},
		capture: func() error { return m.capture(host) },
		counted: func(checkpointResult) error { return nil },
		held:    func(time.Duration) {},
	}
	return k, m
}

// keeperSteps are all that a session asks of its keeper.
func keeperStep(k *keeper, m *walModel, n int) (string, error) {
	switch ctx := context.Background(); n {
	case 0:
		return "roll", k.roll(ctx)
	case 1:
		_, err := k.cooperate(ctx)
		return "cooperate", err
	case 2:
		_, err := k.barrier(ctx, time.Now().Add(time.Second))
		return "barrier", err
	case 3:
		return "excluding", k.excluding(ctx, time.Second, k.capture)
	case 4, 5, 6, 7:
		mode := []string{CheckpointModePassive, CheckpointModeFull, CheckpointModeRestart, CheckpointModeTruncate}[n-4]
		_, err := k.attempt(ctx, mode, time.Second)
		return mode, err
	case 8:
		return "capture", k.capture()
	default:
		return "rest", k.rest()
	}
}

const keeperStepN = 10

// Whatever other connections do between the keeper's steps, and whichever step
// fails: no frame is overwritten before it was captured (I5), and a pin that is
// lost is reported.
//
// PITFALLS rows 4 and 6
func TestKeeperLosesNoFrame(t *testing.T) {
	runs := 2000
	if testing.Short() {
		runs = 300
	}
	first := rand.Uint64()
	restarts, faults, lost := 0, 0, 0
	for i := range runs {
		seed := first + uint64(i)
		rng := rand.New(rand.NewPCG(seed, 4))
		faulty := i%2 == 1
		active := false
		k, m := modelKeeper(seed, func(op string) error {
			if faulty && active && rng.IntN(12) == 0 {
				faults++
				return fmt.Errorf("model: %s: %w", op, errInjected)
			}
			return nil
		})
		err := k.begin(context.Background())
		if err == nil {
			err = k.capture()
		}
		if err != nil {
			t.Fatal(err)
		}
		m.broken = nil // what came before the first capture was nobody's
		active = true
		for range 12 {
			name, err := keeperStep(k, m, rng.IntN(keeperStepN))
			m.note("%s returns %v", name, err)
			if m.broken != nil {
				t.Fatalf("seed %d: %v\n%s", seed, m.broken, strings.Join(m.trace, "\n"))
			}
			if err != nil && !errors.Is(err, errInjected) && !errors.Is(err, ErrCheckpointBusy) {
				t.Fatalf("seed %d: %s: %v\n%s", seed, name, err, strings.Join(m.trace, "\n"))
			}
			if errors.Is(err, errPinLost) {
				lost++
				break // the session ends
			}
			if c, _ := k.pin.(*modelConn); c == nil || !c.in() || c.closed || k.check() != nil {
				t.Fatalf("seed %d: %s returned %v, but the pin is lost\n%s", seed, name, err, strings.Join(m.trace, "\n"))
			}
			if c, _ := k.spare.(*modelConn); c != nil && (c.in() || c.closed) {
				t.Fatalf("seed %d: %s returned %v, but the spare connection is in a transaction\n%s", seed, name, err, strings.Join(m.trace, "\n"))
			}
			if m.writer != nil {
				t.Fatalf("seed %d: %s returned %v and holds the write lock\n%s", seed, name, err, strings.Join(m.trace, "\n"))
			}
		}
		active = false
		if err := k.close(); err != nil {
			t.Fatal(err)
		}
		restarts += m.epoch
	}
	if restarts < runs || faults == 0 || lost == 0 {
		t.Errorf("%d restarts, %d faults, %d lost pins in %d runs: too few to prove anything", restarts, faults, lost, runs)
	}
}

var errInjected = errors.New("injected")

// busyError returns SQLite's own error for a lock that is held.
func busyError(t testing.TB) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	host := restoreOpenSQLite(t, path)
	if _, err := host.Exec("PRAGMA journal_mode=WAL"); err != nil {
		t.Fatal(err)
	}
	pool, err := openSQL(path)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var c [2]*conn
	for i := range c {
		if c[i], err = openConn(bg, pool); err != nil {
			t.Fatal(err)
		}
		defer c[i].Close()
	}
	if err := c[0].BeginWrite(bg, 0); err != nil {
		t.Fatal(err)
	}
	err = c[1].BeginWrite(bg, 0)
	if !isBusy(err) {
		t.Fatalf("error %v of a held write lock is not busy", err)
	}
	return err
}

// A pin that was lost because SQLite was busy must end the session: it is more
// than a checkpoint that has to wait.
func TestAutoCheckpointReportsLostPin(t *testing.T) {
	busy := busyError(t)
	for _, tier := range []checkpointTier{tierCooperate, tierBarrier, tierRestart} {
		begins := 0
		k, _ := modelKeeper(1, func(op string) error {
			if op == "begin read" {
				if begins++; begins > 1 {
					return busy
				}
			}
			return nil
		})
		if err := k.begin(bg); err != nil {
			t.Fatal(err)
		}
		s := &session{keep: *k, capt: &capturer{}}
		s.keep.capture = func() error { return nil }
		policy := checkpointPolicy{min: 1, max: 1, interval: 1}
		s.capt.cursor = walCursor{header: newWALHeader(512, 1, 1, false), offset: WALHeaderSize + 9*536}
		s.capt.pos = Pos{Generation: "0000000000000001"}
		switch tier {
		case tierCooperate:
			policy.min, policy.max = 12, 0
		case tierBarrier:
			policy.max = 0
		}
		got, err := s.autoCheckpoint(bg, policy)
		if got != tier {
			t.Fatalf("tier %d, want %d", got, tier)
		}
		if lost := s.keep.check(); (lost != nil) != errors.Is(err, errPinLost) {
			t.Errorf("tier %d: error %v, but the pin: %v", tier, err, lost)
		}
		if tier == tierCooperate && err != nil {
			t.Errorf("a busy roll is an error: %v", err)
		}
	}
}

// Before a checkpoint, the WAL of fast writers is made durable beside them.
func TestAutoCheckpointSyncsTheWALOfFastWriters(t *testing.T) {
	for _, test := range []struct {
		name      string
		pages     int64
		perSecond float64
		max       int
		want      string
	}{
		{"slow writers", 1500, 30_000, 10_000, "checkpoint checkpoint"},
		{"early", 450, 60_000, 10_000, "checkpoint"},
		{"late", 800, 60_000, 10_000, "sync checkpoint"},
		{"with a barrier", 2500, 60_000, 10_000, "sync checkpoint sync checkpoint"},
		{"with no time to lose", 3900, 60_000, 4000, "checkpoint"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var trace []string
			k, m := modelKeeper(1, func(op string) error {
				if op == "checkpoint" {
					trace = append(trace, op)
				}
				return nil
			})
			m.commits = 1000 // and the host does nearly nothing else
			if err := k.begin(bg); err != nil {
				t.Fatal(err)
			}
			wal := filepath.Join(t.TempDir(), "db-wal")
			if err := os.WriteFile(wal, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			files := faultfs.New(fsys.OS)
			files.SetHook(func(op faultfs.Op) error {
				if op.Name == faultfs.Sync && op.Path == wal {
					trace = append(trace, op.Name)
				}
				return nil
			})
			s := &session{walPath: wal, keep: *k, capt: &capturer{fs: files}, pageSize: 512}
			s.keep.capture = func() error { return nil }
			s.capt.cursor = walCursor{header: newWALHeader(512, 1, 1, false), offset: WALHeaderSize + test.pages*536}
			s.capt.pos = Pos{Generation: "0000000000000001"}
			s.pace = walPace{perSecond: test.perSecond, took: time.Millisecond}
			policy := checkpointPolicy{min: 1000, max: test.max}
			if _, err := s.autoCheckpoint(bg, policy); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(trace, " "); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
			trace, s.load = nil, checkpointLoad{}
			files.FailOn(faultfs.Sync, faultfs.EIO)
			if _, err := s.autoCheckpoint(bg, policy); err != nil {
				t.Errorf("with a failing fsync: %v", err)
			}
			if got, want := len(trace), strings.Count(test.want, "checkpoint"); got != want {
				t.Errorf("with a failing fsync: %d checkpoints, want %d", got, want)
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Where an fsync takes so long that the writers would outrun it, none is made
// until that was a while ago.
func TestSyncAheadOfASlowDisk(t *testing.T) {
	wal := filepath.Join(t.TempDir(), "db-wal")
	if err := os.WriteFile(wal, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	files := faultfs.New(fsys.OS)
	syncs := 0
	files.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Sync {
			syncs++
		}
		return nil
	})
	s := &session{walPath: wal, capt: &capturer{fs: files}}
	s.pace = walPace{perSecond: 80_000, sync: 500 * time.Millisecond} // 40,000 pages
	policy, load := checkpointPolicy{min: 1000, max: 10_000}, checkpointLoad{pages: 2500, burst: 2000}
	tries := 0
	for ; syncs == 0 && tries < 1000; tries++ {
		s.syncAhead(policy, load)
	}
	if tries < 50 || tries == 1000 {
		t.Errorf("an fsync at try %d", tries)
	}
	s.pace.sync = 500 * time.Millisecond
	policy.max = 0 // nothing to outgrow
	if s.syncAhead(policy, load); syncs != 2 {
		t.Error("no fsync without a maximum")
	}
}

// The first tier waits for a checkpoint that the host runs, and does what is left.
func TestCooperateWaitsForAnotherCheckpoint(t *testing.T) {
	k, m := modelKeeper(1, func(string) error { return nil })
	quiet := func() {}
	k.open = func(context.Context) (sqliteConn, error) { return &modelConn{m: m, host: quiet}, nil }
	k.capture = func() error { return m.capture(quiet) }
	if err := k.begin(bg); err != nil {
		t.Fatal(err)
	}
	m.commit(3)
	m.nextCkpt = true // another one is running
	r, err := k.cooperate(bg)
	if want := (checkpointResult{Log: 3, Backfilled: 3}); err != nil || r != want {
		t.Errorf("%+v, %v; want %+v", r, err, want)
	}
	if m.broken != nil {
		t.Error(m.broken)
	}
	if err := k.close(); err != nil {
		t.Fatal(err)
	}
}

// The WAL that restarts with the next commit is looked at before it has grown by
// what is due then, and later ones not more rarely than it grows by that.
func TestUntilDue(t *testing.T) {
	policy := checkpointPolicy{min: 1000, max: 10_000}
	for _, test := range []struct {
		name       string
		pages      int64
		load       checkpointLoad
		backfilled bool
		want       int64 // pages
	}{
		{"a new WAL", 0, checkpointLoad{}, false, 250}, // the writers are fast
		{"growing", 200, checkpointLoad{}, false, 50},
		{"left alone", 700, checkpointLoad{cooperate: 600}, false, 500},
		{"soon due", 2400, checkpointLoad{cooperate: 600}, false, 0},
		{"about to restart", 4000, checkpointLoad{cooperate: 3800, barrier: 4000}, true, 250},
	} {
		s := &session{capt: &capturer{}, load: test.load, pace: walPace{perSecond: 80_000, took: 10 * time.Millisecond}}
		s.capt.cursor = walCursor{header: newWALHeader(512, 1, 1, false), offset: WALHeaderSize + test.pages*536}
		s.capt.pos = Pos{Generation: "0000000000000001", Offset: s.capt.cursor.offset}
		if test.backfilled {
			s.backfilled = s.capt.pos
		}
		if got, want := s.untilDue(policy), s.pace.until(test.want); got != want {
			t.Errorf("%s: %v, want %v", test.name, got, want)
		}
	}
}

// What dueAt promises is what due does.
func TestCheckpointPolicyDueAt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		p := checkpointPolicy{min: 1 + rng.IntN(30), max: rng.IntN(60)}
		l := checkpointLoad{cooperate: rng.Int64N(40), barrier: rng.Int64N(40), restart: rng.Int64N(60), growth: rng.Int64N(20), burst: rng.Int64N(60), snapshots: rng.IntN(2)}
		at := p.dueAt(l)
		if l.pages = at - 1; p.due(l) != tierNone {
			t.Fatalf("%+v: %+v is due before %d pages", p, l, at)
		}
		if l.pages = at; p.due(l) == tierNone && !p.outrun(l) {
			t.Fatalf("%+v: %+v is not due", p, l)
		}
	}
}

func TestCheckpointPolicyFarBehind(t *testing.T) {
	for _, test := range []struct {
		max, frameSize int
		from, to       int64
	}{
		{2000, 4120, 500, 4072},
		{DefaultMaxCheckpointPageN, 4120, 2500, 4072},
		{DefaultMaxCheckpointPageN, 536, 2500, 31300},
		{0, 4120, 0, 4072}, // never
	} {
		from, to := checkpointPolicy{max: test.max}.farBehind(test.frameSize)
		if from != test.from || to != test.to {
			t.Errorf("max %d, frames of %d: %d to %d, want %d to %d", test.max, test.frameSize, from, to, test.from, test.to)
		}
	}
}

func TestCheckpointPolicyBeyond(t *testing.T) {
	p := checkpointPolicy{max: 2000}
	for _, test := range []struct {
		l    checkpointLoad
		want bool
	}{
		{checkpointLoad{}, false},
		{checkpointLoad{pages: 1999}, false},
		{checkpointLoad{pages: 2000}, true}, // a reader is in the way
		{checkpointLoad{pages: 2000, backfilled: true}, false},
		{checkpointLoad{pages: 1, backfilled: true, snapshots: 1}, true},
	} {
		if got := p.beyond(test.l); got != test.want {
			t.Errorf("%+v: %t, want %t", test.l, got, test.want)
		}
	}
}

func TestWALPaceUntil(t *testing.T) {
	for _, test := range []struct {
		perSecond float64
		frames    int64
		want      time.Duration
	}{
		{0, 10, time.Hour}, {100, 10, 100 * time.Millisecond}, {100, 0, 0}, {1, math.MaxInt64, time.Hour}, {1e6, 250, 250 * time.Microsecond},
	} {
		p := walPace{perSecond: test.perSecond}
		if got := p.until(test.frames); got != test.want {
			t.Errorf("%d frames at %v: %v, want %v", test.frames, test.perSecond, got, test.want)
		}
	}
}

func TestCheckpointPolicyDue(t *testing.T) {
	def := checkpointPolicy{DefaultMinCheckpointPageN, DefaultMaxCheckpointPageN, time.Minute}
	for _, test := range []struct {
		name string
		p    checkpointPolicy
		l    checkpointLoad
		want checkpointTier
	}{
		{"nothing", def, checkpointLoad{}, tierNone},
		{"small", def, checkpointLoad{pages: 499}, tierNone},
		{"a fast writer, too early", def, checkpointLoad{pages: 249, growth: 600}, tierNone},
		{"a fast writer", def, checkpointLoad{pages: 250, growth: 600}, tierCooperate},
		{"a few hundred", def, checkpointLoad{pages: 500}, tierCooperate},
		{"not again at once", def, checkpointLoad{pages: 999, cooperate: 500}, tierNone},
		{"again when doubled", def, checkpointLoad{pages: 1000, cooperate: 500, barrier: 900}, tierCooperate},
		{"barrier at once above the minimum", def, checkpointLoad{pages: 1500}, tierBarrier},
		{"the first tier would be outrun", def, checkpointLoad{pages: 600, growth: 4701}, tierNone},
		{"the first tier keeps up", def, checkpointLoad{pages: 600, growth: 4700}, tierCooperate},
		{"without a maximum nothing is outrun", checkpointPolicy{1000, 0, 0}, checkpointLoad{pages: 600, growth: 1 << 40}, tierCooperate},
		{"fast writers are left alone", def, checkpointLoad{pages: 1999, cooperate: 400, burst: 2000}, tierNone},
		{"but not for long", def, checkpointLoad{pages: 2000, cooperate: 400, burst: 2000}, tierBarrier},
		{"nor far", def, checkpointLoad{pages: 2500, cooperate: 400, burst: 9000}, tierBarrier},
		{"the first tier not before", def, checkpointLoad{pages: 2399, cooperate: 400, barrier: 2000, burst: 2000}, tierNone},
		{"but then", def, checkpointLoad{pages: 2400, cooperate: 400, barrier: 2000, burst: 2000}, tierCooperate},
		{"fast writers, barrier again", def, checkpointLoad{pages: 3000, cooperate: 2900, barrier: 2000, burst: 2000}, tierBarrier},
		{"not quite as fast", def, checkpointLoad{pages: 1000, cooperate: 600, burst: 999}, tierBarrier},
		{"fast writers without a maximum", checkpointPolicy{1000, 0, 0}, checkpointLoad{pages: 8999, cooperate: 400, burst: 9000}, tierNone},
		{"barrier", def, checkpointLoad{pages: 1000, cooperate: 600}, tierBarrier},
		{"barrier not again", def, checkpointLoad{pages: 1499, cooperate: 1000, barrier: 1000}, tierNone},
		{"barrier again", def, checkpointLoad{pages: 1500, cooperate: 1499, barrier: 1000}, tierBarrier},
		{"forced", def, checkpointLoad{pages: 10000, cooperate: 9999, barrier: 9999}, tierRestart},
		{"forced not again", def, checkpointLoad{pages: 12499, cooperate: 12400, barrier: 12400, restart: 10000}, tierNone},
		{"forced again", def, checkpointLoad{pages: 12500, cooperate: 12400, barrier: 12400, restart: 10000}, tierRestart},
		{"never forced under a snapshot", def, checkpointLoad{pages: 50000, cooperate: 49900, barrier: 49900, snapshots: 1}, tierNone},
		{"none is forced", checkpointPolicy{1000, 0, 0}, checkpointLoad{pages: 1 << 40, cooperate: 1 << 39, barrier: 1<<40 - 1}, tierCooperate},
		{"by time", def, checkpointLoad{pages: 1, age: time.Minute}, tierCooperate},
		{"not before", def, checkpointLoad{pages: 1, age: time.Minute - 1}, tierNone},
		{"not without frames", def, checkpointLoad{age: time.Hour}, tierNone},
		{"nothing is left to copy", def, checkpointLoad{pages: 20000, backfilled: true, age: time.Hour}, tierNone},
		{"no interval", checkpointPolicy{1000, 10000, 0}, checkpointLoad{pages: 1, age: time.Hour}, tierNone},
		{"smallest", checkpointPolicy{1, 0, 0}, checkpointLoad{pages: 1}, tierBarrier},
		{"smallest, not again", checkpointPolicy{1, 0, 0}, checkpointLoad{pages: 1, cooperate: 1, barrier: 1}, tierNone},
	} {
		if got := test.p.due(test.l); got != test.want {
			t.Errorf("%s: tier %d, want %d", test.name, got, test.want)
		}
	}
}
