package litestream_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/litestream"
)

// hostileMemory is more than any restore of these tests takes, and less than
// what their bombs unpack to.
const hostileMemory = 256 << 20

// hostileRun restores from damaged replicas, in every way, and checks what
// comes out.
type hostileRun struct {
	*hostileReplica
	dir      string // holds the directory in, in which files are restored, and nothing else
	restores int
	good     int // restores that succeeded
	unseen   int // good ones of a state that never was, where the format gives no means to notice
}

func newHostileRun(t *testing.T) *hostileRun {
	run := &hostileRun{hostileReplica: newHostileReplica(t), dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(run.dir, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
	boundMemory(t, hostileMemory)
	return run
}

func (run *hostileRun) log(t *testing.T, mutations int) {
	t.Logf("%d mutations, %d restores: %d restored a state that was, %d a state that was not, unseen; %d errors",
		mutations, run.restores, run.good-run.unseen, run.unseen, run.restores-run.good)
}

// boundMemory samples the heap until the test ends.
func boundMemory(t *testing.T, limit uint64) {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
			select {
			case <-tick.C:
			case <-stop:
				done <- most
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		if most := <-done; most > before.HeapAlloc+limit {
			t.Errorf("the heap grew from %d to %d MiB", before.HeapAlloc>>20, most>>20)
		}
	})
}

// all restores from a damaged replica in every way.
func (run *hostileRun) all(t *testing.T, m mutation, c litestream.ReplicaClient) {
	t.Helper()
	run.latest(t, m, c)
	for _, generation := range []string{run.a, run.b} {
		run.at(t, m, c, run.middle(generation))
	}
	run.index(t, m, c, run.a, 0, 2)
	run.index(t, m, c, run.a, 1, 3)
	run.index(t, m, c, run.b, 0, 1)
	run.stepwise(t, m, c, run.a, 0, 3)
}

// one restores in one of the ways, another for each n.
func (run *hostileRun) one(t *testing.T, m mutation, c litestream.ReplicaClient, n int) {
	t.Helper()
	switch n % 5 {
	case 0:
		run.latest(t, m, c)
	case 1:
		run.at(t, m, c, run.middle(run.a))
	case 2:
		run.index(t, m, c, run.a, 0, 3)
	case 3:
		run.index(t, m, c, run.b, 0, 1)
	case 4:
		run.stepwise(t, m, c, run.a, 1, 2)
	}
}

// some leaves out most of a's mutations where all would take minutes.
func some(t *testing.T, a []mutation) []mutation {
	if !testing.Short() && !litestream.RaceEnabled {
		return a
	}
	var few []mutation
	for i := 0; i < len(a); i += 7 {
		few = append(few, a[i])
	}
	t.Logf("with -short or the race detector only %d of %d mutations", len(few), len(a))
	return few
}

// middle is the time of a state in the middle of a generation.
func (run *hostileRun) middle(generation string) time.Time {
	var times []time.Time
	for pos, at := range run.times {
		if pos.Generation == generation {
			times = append(times, at)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times[len(times)/2]
}

func (run *hostileRun) latest(t *testing.T, m mutation, c litestream.ReplicaClient) {
	t.Helper()
	run.try(t, m, "RestoreLatest", func(path string) (func(litestream.Pos) bool, error) {
		pos, err := litestream.RestoreLatest(ctx, c, path, hostileOptions())
		return func(p litestream.Pos) bool { return p == pos }, err
	})
}

func (run *hostileRun) at(t *testing.T, m mutation, c litestream.ReplicaClient, at time.Time) {
	t.Helper()
	run.try(t, m, "RestoreAt", func(path string) (func(litestream.Pos) bool, error) {
		pos, err := litestream.RestoreAt(ctx, c, path, at, hostileOptions())
		return func(p litestream.Pos) bool { return p == pos && !run.times[p].After(at) }, err
	})
}

// index restores to the end of an index. What is missing at its end is not
// seen.
func (run *hostileRun) index(t *testing.T, m mutation, c litestream.ReplicaClient, generation string, snapshot, target int) {
	t.Helper()
	run.try(t, m, fmt.Sprintf("Restore %d to %d", snapshot, target), func(path string) (func(litestream.Pos) bool, error) {
		err := litestream.Restore(ctx, c, path, generation, snapshot, target, hostileOptions())
		return func(p litestream.Pos) bool { return p.Generation == generation && p.Index == target }, err
	})
}

// stepwise restores a snapshot, and applies downloaded WAL files.
func (run *hostileRun) stepwise(t *testing.T, m mutation, c litestream.ReplicaClient, generation string, snapshot, target int) {
	t.Helper()
	run.try(t, m, "RestoreSnapshot, WALDownloader, ApplyWAL", func(path string) (_ func(litestream.Pos) bool, err error) {
		reached := func(p litestream.Pos) bool { return p.Generation == generation && p.Index == target }
		defer func() {
			if err != nil {
				err = errors.Join(err, removeIfThere(path)) // the caller's
			}
		}()
		if err := litestream.RestoreSnapshot(ctx, c, path, generation, snapshot, 0o600, 0, 0); err != nil {
			return reached, err
		}
		d := litestream.NewWALDownloader(c, path, generation, snapshot, target)
		defer func() { err = errors.Join(err, d.Close()) }()
		for index := snapshot; index <= target; index++ {
			got, wal, err := d.Next(ctx)
			if err != nil {
				return reached, err
			}
			if got != index {
				return reached, fmt.Errorf("index %d comes after %d", got, index-1)
			}
			if err := litestream.ApplyWAL(ctx, path, wal); err != nil {
				return reached, errors.Join(fmt.Errorf("index %s of %s: %w", litestream.FormatIndex(index), generation, err), os.Remove(wal))
			}
		}
		return reached, nil
	})
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func hostileOptions() litestream.RestoreOptions {
	opt := quietRestore()
	opt.IntegrityCheck = litestream.IntegrityCheckNone
	return opt
}

// try restores once. It expects a state that was at a position that the
// restore promises, or an error that names the damage; and nothing else on the
// disk.
func (run *hostileRun) try(t *testing.T, m mutation, what string, restore func(path string) (func(litestream.Pos) bool, error)) {
	t.Helper()
	run.restores++
	path := filepath.Join(run.dir, "in", "restored")
	promised, err := restore(path)
	var want []string
	if err == nil {
		want = []string{"restored"}
	}
	if got := namesIn(t, run.dir); !slices.Equal(got, []string{"in"}) {
		t.Fatalf("%s, %s: the parent directory holds %q", m.what, what, got)
	}
	if got := namesIn(t, filepath.Join(run.dir, "in")); !slices.Equal(got, want) {
		t.Fatalf("%s, %s, %v: the directory holds %q, want %q", m.what, what, err, got, want)
	}
	if err != nil {
		if len(m.names) > 0 && !mentions(err, m.names) && !explains(err) {
			t.Errorf("%s, %s: the error names none of %q: %v", m.what, what, m.names, err)
		}
		return
	}
	run.good++
	got, err := os.ReadFile(path)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	for pos, state := range run.states {
		if promised(pos) && bytes.Equal(got, state) {
			return
		}
	}
	if run.unseen++; !m.unseen {
		t.Errorf("%s, %s: restored %d bytes that the database never was at the promised position", m.what, what, len(got))
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, ent := range ents {
		names = append(names, ent.Name())
	}
	return names
}

// PITFALLS row 14
func TestHostile_EveryFileInEveryWay(t *testing.T) {
	run := newHostileRun(t)
	run.all(t, mutation{what: "nothing"}, run.client(t, run.files))
	if run.good != run.restores || run.unseen > 0 {
		t.Fatalf("%d of %d restores of a sound replica succeed, %d are wrong", run.good, run.restores, run.unseen)
	}
	mutations := some(t, run.mutations())
	for _, m := range mutations {
		run.all(t, m, run.client(t, m.files))
	}
	run.log(t, len(mutations))
}

// explains reports whether an error says clearly what is missing: anything to
// restore, anything as old, or a page.
func explains(err error) bool {
	return errors.Is(err, litestream.ErrNoSnapshots) ||
		strings.Contains(err.Error(), "the earliest moment that can be restored") ||
		strings.Contains(err.Error(), "is neither here nor in the wal behind")
}
