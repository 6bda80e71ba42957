package litestream_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

const retention = 24 * time.Hour

// retainer is a fixture whose replica is used by the test alone.
type retainer struct {
	*fixture
	r *litestream.Replica
}

func newRetainer(t testing.TB) *retainer {
	t.Helper()
	fx := newFixture(t, manually, func(db *litestream.DB) { db.Replicas[0].Retention = retention })
	return &retainer{fx, fx.db.Replicas[0]}
}

// path is below the replica's directory.
func (rt *retainer) path(elem ...string) string {
	return filepath.Join(rt.dir, "file", "generations", filepath.Join(elem...))
}

// age makes everything in a part of the replica older.
func (rt *retainer) age(t testing.TB, d time.Duration, elem ...string) {
	t.Helper()
	if err := filepath.WalkDir(rt.path(elem...), func(path string, ent fs.DirEntry, err error) error {
		if err != nil || ent.IsDir() {
			return err
		}
		info, err := ent.Info()
		if err != nil {
			return err
		}
		at := info.ModTime().Add(-d)
		return os.Chtimes(path, at, at)
	}); err != nil {
		t.Fatal(err)
	}
}

// phase commits a row into a new WAL index and makes a snapshot of that.
func (rt *retainer) phase(t testing.TB) litestream.SnapshotInfo {
	t.Helper()
	if err := rt.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil {
		t.Fatal(err)
	}
	rt.insert(t, "phase")
	mustSync(t, rt.db)
	info, err := rt.r.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// generation begins a new one and replicates it.
func (rt *retainer) generation(t testing.TB) string {
	t.Helper()
	if err := rt.db.BeginGeneration(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	mustSync(t, rt.db)
	return rt.db.Pos().Generation
}

func (rt *retainer) enforce(t testing.TB) {
	t.Helper()
	if err := rt.r.EnforceRetention(ctx); err != nil {
		t.Fatal(err)
	}
}

// files lists the replica as GENERATION/INDEX of snapshots and
// GENERATION/INDEX:OFFSET of segments.
func (rt *retainer) files(t testing.TB) (snapshots, segments []string) {
	t.Helper()
	infos, err := rt.r.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		snapshots = append(snapshots, info.Generation+"/"+litestream.FormatIndex(info.Index))
	}
	generations, err := rt.client.Generations(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, generation := range generations {
		itr, err := rt.client.WALSegments(ctx, generation)
		if err != nil {
			t.Fatal(err)
		}
		infos, err := litestream.SliceWALSegmentIterator(itr)
		if err != nil {
			t.Fatal(err)
		}
		for _, info := range infos {
			segments = append(segments, info.Pos().String())
		}
	}
	return snapshots, segments
}

// rowsAt restores a moment.
func (rt *retainer) rowsAt(t testing.TB, at time.Time) (int, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored")
	opt := litestream.NewRestoreOptions()
	opt.Logger = log.New(io.Discard, "", 0)
	if _, err := litestream.RestoreAt(ctx, rt.client, path, at, opt); err != nil {
		return 0, err
	}
	return countRows(t, path), nil
}

// PITFALLS row 24
func TestRetention_CutoffStaysRestorableAndOlderGoes(t *testing.T) {
	rt := newRetainer(t)
	var phases []litestream.SnapshotInfo
	for range 5 { // they end up 50, 40, 30, 20 and 10 hours old
		phases = append(phases, rt.phase(t))
		rt.age(t, 10*time.Hour)
	}
	now := time.Now()
	moments := map[time.Time]int{now.Add(-retention): 4, now.Add(-15 * time.Hour): 5, now: 6}
	for range 2 {
		for at, want := range moments {
			if n, err := rt.rowsAt(t, at); n != want || err != nil {
				t.Errorf("%v ago: %d rows, %v; want %d", now.Sub(at), n, err, want)
			}
		}
		rt.enforce(t)
	}
	if n, err := rt.rowsAt(t, now.Add(-35*time.Hour)); err == nil {
		t.Errorf("before what is kept: %d rows", n)
	}
	snapshots, segments := rt.files(t)
	if len(snapshots) != 3 || !strings.HasSuffix(snapshots[0], litestream.FormatIndex(phases[2].Index)) {
		t.Errorf("snapshots %v", snapshots)
	}
	for _, s := range segments {
		if s < snapshots[0] {
			t.Errorf("segment %s is from before snapshot %s", s, snapshots[0])
		}
	}
	rt.mustReplicate(t)
}

func TestRetention_MakesASnapshotSoThatHistoryCanGo(t *testing.T) {
	rt := newRetainer(t)
	for want, d := range []time.Duration{0, 23 * time.Hour, 2 * time.Hour, 0, 30 * time.Hour} {
		rt.age(t, d)
		rt.nextIndex(t)
		rt.enforce(t)
		made := int(rt.r.Stats().Snapshots) - 1
		if want := []int{0, 0, 1, 1, 2}[want]; made != want {
			t.Fatalf("%d snapshots were made, want %d", made, want)
		}
	}
	snapshots, _ := rt.files(t)
	if len(snapshots) > 2 {
		t.Errorf("snapshots %v: one from before the cutoff is enough", snapshots)
	}
	rt.mustReplicate(t)
}

// The generation that the DB captures into stays, however its files are
// stamped and whatever was current when the enforcement began. PITFALLS rows
// 15 and 41
func TestRetention_GenerationBornWhileListingStays(t *testing.T) {
	for _, method := range []string{"Generations", "Snapshots"} {
		for _, stamp := range []time.Duration{0, 72 * time.Hour, -48 * time.Hour} {
			t.Run(fmt.Sprintf("%s/%v", method, stamp), func(t *testing.T) {
				rt := newRetainer(t)
				rt.age(t, 50*time.Hour)
				rt.phase(t)
				rt.age(t, 30*time.Hour)
				var born string
				rt.client.SetPlans(failIf(func(call replicatest.Call) error {
					if call.Method == method && call.N == 1 {
						born = rt.generation(t)
						rt.age(t, stamp, born)
					}
					return nil
				}))
				rt.enforce(t)
				rt.client.SetPlans()
				snapshots, _ := rt.files(t)
				if !slices.ContainsFunc(snapshots, func(s string) bool { return strings.HasPrefix(s, born) }) {
					t.Errorf("generation %s was deleted: %v", born, snapshots)
				}
				rt.mustReplicate(t)
			})
		}
	}
}

// PITFALLS row 15
func TestRetention_FreshGenerationOfAnotherStays(t *testing.T) {
	rt := newRetainer(t)
	const foreign = "00000000deadbeef" // has segments, and will get its snapshot
	rt.age(t, 50*time.Hour)
	rt.client.SetPlans(failIf(func(call replicatest.Call) error {
		if call.Method == "Generations" {
			_, err := rt.client.WriteWALSegment(ctx, litestream.Pos{Generation: foreign}, strings.NewReader("x"))
			return err
		}
		return nil
	}))
	rt.enforce(t)
	rt.client.SetPlans()
	if _, err := os.Stat(rt.path(foreign)); err != nil {
		t.Error(err)
	}
}

// A clock that is set back by two days, and stays so, does not let the steady
// one outrun the stamps. PITFALLS row 41
func TestRetention_ClockSetBackCollapsesNoHistory(t *testing.T) {
	rt := newRetainer(t)
	rt.age(t, 10*time.Hour)
	rt.phase(t)
	rt.age(t, time.Hour)
	before, _ := rt.files(t)
	last := rt.phase(t) // by the clock that was set back
	rt.age(t, 48*time.Hour, last.Generation, "snapshots", litestream.FormatIndex(last.Index)+litestream.SnapshotExt)
	start := time.Now()
	litestream.SetClock(rt.r,
		func() time.Time { return start.Add(30 * time.Hour) },
		func() time.Time { return start.Add(30*time.Hour - 48*time.Hour) },
	)
	rt.enforce(t)
	after, _ := rt.files(t)
	for _, s := range before {
		if !slices.Contains(after, s) {
			t.Errorf("snapshot %s was deleted", s)
		}
	}
	litestream.SetClock(rt.r, time.Now, time.Now)
}

// A clock that is set forward makes nothing look old. PITFALLS row 41
func TestRetention_ClockSetForwardDeletesNothing(t *testing.T) {
	rt := newRetainer(t)
	rt.phase(t)
	before, segments := rt.files(t)
	start := time.Now()
	litestream.SetClock(rt.r, time.Now, func() time.Time { return start.Add(48 * time.Hour) })
	rt.phase(t)
	rt.age(t, -48*time.Hour, rt.db.Pos().Generation, "snapshots")
	rt.enforce(t)
	after, kept := rt.files(t)
	for _, s := range slices.Concat(before, segments) {
		if !slices.Contains(after, s) && !slices.Contains(kept, s) {
			t.Errorf("%s was deleted", s)
		}
	}
}

// history leaves an old generation that has to go and a current one of which
// the first two snapshots have to, all within an enforcement.
func (rt *retainer) history(t testing.TB) {
	t.Helper()
	rt.generation(t)
	rt.age(t, 90*time.Hour)
	rt.generation(t)
	for range 3 {
		rt.phase(t)
		rt.age(t, 30*time.Hour)
	}
	rt.phase(t)
}

// A failure of any deletion leaves the newest state, and what it leaves over
// goes with the next enforcement.
func TestRetention_InterruptedAtEachDeletion(t *testing.T) {
	rt := newRetainer(t)
	deletions := []string{"DeleteGeneration", "DeleteSnapshot", "DeleteWALSegments"}
	seen := map[string]bool{}
	for n := 1; ; n++ {
		if n > 50 {
			t.Fatal("no end")
		}
		rt.history(t)
		calls, failed := 0, ""
		rt.client.SetPlans(failIf(func(call replicatest.Call) error {
			if !slices.Contains(deletions, call.Method) {
				return nil
			}
			if calls++; calls != n {
				return nil
			}
			failed = call.Method
			return errInjected
		}))
		err := rt.r.EnforceRetention(ctx)
		rt.client.SetPlans()
		if failed != "" {
			mustErrorIs(t, err, errInjected)
			seen[failed] = true
		} else if err != nil {
			t.Fatal(err)
		}
		rt.mustReplicate(t)
		rt.enforce(t)
		snapshots, segments := rt.files(t)
		generation := rt.db.Pos().Generation
		if len(snapshots) != 2 || !strings.HasPrefix(snapshots[0], generation) {
			t.Fatalf("after failure of %q: snapshots %v", failed, snapshots)
		}
		for _, s := range segments {
			if s < snapshots[0] {
				t.Errorf("after failure of %q: segment %s is left", failed, s)
			}
		}
		if names, err := rt.client.Generations(ctx); err != nil || len(names) != 1 {
			t.Errorf("after failure of %q: generations %v, %v", failed, names, err)
		}
		if failed == "" {
			break
		}
	}
	for _, method := range deletions {
		if !seen[method] {
			t.Errorf("%s was not called", method)
		}
	}
}

// Snapshots go first, so an interrupted DeleteGeneration, or an upload that was
// given up, leaves WAL without one: it has to go as well.
func TestRetention_WALWithoutSnapshotGoes(t *testing.T) {
	rt := newRetainer(t)
	rt.insert(t, "x")
	mustSync(t, rt.db)
	orphan := rt.db.Pos().Generation
	if err := os.RemoveAll(rt.path(orphan, "snapshots")); err != nil {
		t.Fatal(err)
	}
	rt.generation(t)
	rt.enforce(t)
	if _, err := os.Stat(rt.path(orphan)); err != nil {
		t.Errorf("fresh segments were deleted: %v", err)
	}
	rt.age(t, 25*time.Hour, orphan)
	rt.enforce(t)
	if _, err := os.Stat(rt.path(orphan)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the rest of generation %s is still there: %v", orphan, err)
	}
	rt.mustReplicate(t)
}

// A crash in the middle of the first write leaves a generation that holds
// nothing but an unfinished file.
func TestRetention_EmptyGenerationGoes(t *testing.T) {
	rt := newRetainer(t)
	rt.insert(t, "x")
	mustSync(t, rt.db)
	now := time.Now()
	litestream.SetClock(rt.r, func() time.Time { return now }, func() time.Time { return now })
	dir := rt.path("00000000000000aa", "wal", litestream.FormatIndex(0))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "0000000000000000.wal.lz4.0123456789abcdef-1.tmp"), []byte("half"))
	for _, step := range []struct {
		pass time.Duration
		gone bool
	}{{0, false}, {0, false}, {23 * time.Hour, false}, {2 * time.Hour, true}} {
		now = now.Add(step.pass)
		rt.enforce(t)
		if _, err := os.Stat(rt.path("00000000000000aa")); errors.Is(err, fs.ErrNotExist) != step.gone {
			t.Errorf("after %v more: %v; want it gone: %v", step.pass, err, step.gone)
		}
	}
	rt.mustReplicate(t)
}

// PITFALLS row 26
func TestRetention_BesideUploadsAndRestores(t *testing.T) {
	rt := newRetainer(t)
	rt.r.Retention = time.Millisecond
	limit := time.Second
	if testing.Short() {
		limit = 300 * time.Millisecond
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(what string, fn func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := fn(); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	i := 0
	loop("write", func() error {
		if _, err := rt.host.Exec(`INSERT INTO t VALUES (randomblob(3000))`); err != nil {
			return err
		}
		if i++; i%5 == 0 {
			if err := rt.db.Checkpoint(ctx, litestream.CheckpointModeTruncate); err != nil && !errors.Is(err, litestream.ErrCheckpointBusy) {
				return err
			}
		}
		return rt.db.SyncAndWait(ctx)
	})
	enforced := 0
	loop("retention", func() error { enforced++; return rt.r.EnforceRetention(ctx) })
	restored := 0
	dir := t.TempDir()
	loop("restore", func() error {
		restored++
		path := filepath.Join(dir, fmt.Sprint(restored))
		opt := litestream.NewRestoreOptions()
		opt.Logger = log.New(io.Discard, "", 0)
		opt.IntegrityCheck = litestream.IntegrityCheckQuick
		_, err := litestream.RestoreLatest(ctx, rt.client, path, opt)
		return err
	})
	pass(limit)
	close(stop)
	wg.Wait()
	t.Logf("%d commits, %d enforcements, %d restores", i, enforced, restored)
	rt.mustReplicate(t)
}

func TestRetention_WhatItNeeds(t *testing.T) {
	rt := newRetainer(t)
	rt.r.Retention = 0
	rt.client.SetPlans()
	rt.enforce(t)
	if n := rt.client.Calls(); n > 0 {
		t.Errorf("%d calls without Retention", n)
	}
	rt.r.Retention = retention
	rt.age(t, 30*time.Hour)
	rt.nextIndex(t)
	for _, method := range []string{"Generations", "Snapshots", "WriteSnapshot", "WALSegments"} {
		rt.client.SetPlans(replicatest.FailAll(errInjected, method))
		mustErrorIs(t, rt.r.EnforceRetention(ctx), errInjected)
	}
	rt.client.SetPlans(replicatest.On(failIteration, "Snapshots"))
	mustErrorIs(t, rt.r.EnforceRetention(ctx), errIteration)
	rt.client.SetPlans()
	if err := rt.db.Close(); err != nil {
		t.Fatal(err)
	}
	// Another process may manage the database by now.
	mustErrorIs(t, rt.r.EnforceRetention(ctx), litestream.ErrDBClosed)

	db := newDB(t, t.TempDir())
	mustErrorIs(t, db.Replicas[0].EnforceRetention(ctx), litestream.ErrDBClosed)
	mustOpen(t, db)
	mustErrorIs(t, db.Replicas[0].EnforceRetention(ctx), litestream.ErrNoGeneration)
	if err := litestream.NewReplica(nil, "x", nil).EnforceRetention(ctx); err == nil {
		t.Error("a replica without anything enforces")
	}
}

func TestReplica_SnapshotListings(t *testing.T) {
	rt := newRetainer(t)
	rt.age(t, 5*time.Hour)
	old := rt.db.Pos().Generation
	generation := rt.generation(t)
	rt.age(t, 2*time.Hour)
	first := rt.phase(t)
	second := rt.phase(t)
	infos, err := rt.r.Snapshots(ctx)
	if err != nil || len(infos) != 4 {
		t.Fatalf("%d snapshots, %v", len(infos), err)
	}
	if !slices.IsSortedFunc(infos, func(a, b litestream.SnapshotInfo) int {
		return strings.Compare(a.Pos().String(), b.Pos().String())
	}) {
		t.Errorf("not sorted: %v", infos)
	}
	now := time.Now()
	near := func(at time.Time, ago time.Duration) bool {
		return now.Sub(at)-ago < time.Minute && ago-now.Sub(at) < time.Minute
	}
	for name, ago := range map[string]time.Duration{old: 7 * time.Hour, generation: 2 * time.Hour} {
		if at, err := rt.r.GenerationCreatedAt(ctx, name); err != nil || !near(at, ago) {
			t.Errorf("generation of %v ago: %v ago, %v", ago, now.Sub(at), err)
		}
	}
	if at, err := rt.r.GenerationCreatedAt(ctx, "00000000deadbeef"); err != nil || !at.IsZero() {
		t.Errorf("no such generation: %v, %v", at, err)
	}
	for _, tt := range []struct {
		at   time.Time
		want int
	}{
		{time.Time{}, second.Index}, {second.CreatedAt, second.Index},
		{second.CreatedAt.Add(-1), first.Index}, {now.Add(-time.Hour), 0},
	} {
		if index, err := rt.r.SnapshotIndexAt(ctx, generation, tt.at); err != nil || index != tt.want {
			t.Errorf("index at %v: %d, %v; want %d", tt.at, index, err, tt.want)
		}
	}
	_, err = rt.r.SnapshotIndexAt(ctx, generation, now.Add(-3*time.Hour))
	mustErrorIs(t, err, litestream.ErrNoSnapshots)
	for injected, fault := range map[error]replicatest.Fault{errInjected: {Kind: replicatest.Fail}, errIteration: failIteration} {
		rt.client.SetPlans(replicatest.On(fault, "Snapshots"))
		_, err = rt.r.Snapshots(ctx)
		mustErrorIs(t, err, injected)
		_, err = rt.r.SnapshotIndexAt(ctx, generation, now)
		mustErrorIs(t, err, injected)
		_, err = rt.r.GenerationCreatedAt(ctx, generation)
		mustErrorIs(t, err, injected)
	}
	rt.client.SetPlans()
	_, err = rt.r.GenerationCreatedAt(ctx, "../..")
	if err == nil {
		t.Error("a generation's name is not checked")
	}
}
