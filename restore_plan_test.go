package litestream

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	restoreGenA = "aaaaaaaaaaaaaaaa"
	restoreGenB = "bbbbbbbbbbbbbbbb"
)

// restoreMoment is n seconds after an arbitrary start.
func restoreMoment(n int) time.Time { return time.Unix(1_700_000_000+int64(n), 0).UTC() }

// restoreInfos describes a generation: snapshots as (index, second) and
// segments as (index, offset, second).
func restoreInfos(name string, snapshots [][2]int, segments [][3]int) generationInfos {
	gi := generationInfos{name: name}
	for _, s := range snapshots {
		gi.snapshots = append(gi.snapshots, SnapshotInfo{Generation: name, Index: s[0], Size: 1000, CreatedAt: restoreMoment(s[1])})
	}
	for _, s := range segments {
		gi.segments = append(gi.segments, WALSegmentInfo{Generation: name, Index: s[0], Offset: int64(s[1]), Size: 10, CreatedAt: restoreMoment(s[2])})
	}
	return gi
}

// PITFALLS rows 22, 23, 25, 27, 40 and 41
func TestPlanRestore_ChoosesWhatCanBeRestored(t *testing.T) {
	type at = [2]int
	type seg = [3]int
	whole := restoreInfos(restoreGenA, []at{{0, 0}, {2, 20}}, []seg{{0, 0, 1}, {0, 50, 5}, {1, 0, 10}, {2, 0, 20}, {2, 50, 25}, {3, 0, 30}})
	older := restoreInfos(restoreGenB, []at{{7, 0}}, []seg{{7, 0, 3}})
	for _, tt := range []struct {
		name     string
		infos    []generationInfos
		t        int // second; 0: newest
		snapshot int
		pos      Pos
		segments int
		skipped  int
		err      string // part of the message
	}{
		{name: "no generation", err: ErrNoGeneration.Error()},
		{name: "empty generation", infos: []generationInfos{{name: restoreGenA}}, err: ErrNoSnapshots.Error()},
		{name: "no snapshot", infos: []generationInfos{restoreInfos(restoreGenA, nil, []seg{{0, 0, 1}})}, err: ErrNoSnapshots.Error()},
		{name: "newest", infos: []generationInfos{whole}, snapshot: 2, pos: Pos{restoreGenA, 3, 0}, segments: 3},
		{name: "snapshot alone", infos: []generationInfos{restoreInfos(restoreGenA, []at{{4, 9}}, []seg{{3, 0, 8}})}, snapshot: 4, pos: Pos{restoreGenA, 4, 0}},
		{name: "highest index", infos: []generationInfos{restoreInfos(restoreGenA, []at{{math.MaxInt, 9}}, []seg{{math.MaxInt, 0, 8}})},
			snapshot: math.MaxInt, pos: Pos{restoreGenA, math.MaxInt, 0}, segments: 1},

		{name: "at a segment", infos: []generationInfos{whole}, t: 5, snapshot: 0, pos: Pos{restoreGenA, 0, 50}, segments: 2},
		{name: "between segments of an index", infos: []generationInfos{whole}, t: 24, snapshot: 2, pos: Pos{restoreGenA, 2, 0}, segments: 1},
		{name: "just before a snapshot", infos: []generationInfos{whole}, t: 19, snapshot: 0, pos: Pos{restoreGenA, 1, 0}, segments: 3},
		{name: "after all", infos: []generationInfos{whole}, t: 99, snapshot: 2, pos: Pos{restoreGenA, 3, 0}, segments: 3},
		{name: "before all", infos: []generationInfos{whole, older}, t: -1, err: "earliest moment that can be restored is " + restoreMoment(0).Format(time.RFC3339Nano)},

		{name: "empty generation beside a good one", infos: []generationInfos{{name: restoreGenA}, older}, snapshot: 7, pos: Pos{restoreGenB, 7, 0}, segments: 1},
		{name: "newer generation wins", infos: []generationInfos{older, whole}, snapshot: 2, pos: Pos{restoreGenA, 3, 0}, segments: 3},
		{name: "newer by then", infos: []generationInfos{whole, restoreInfos(restoreGenB, []at{{0, 7}}, []seg{{0, 0, 8}})}, t: 9, snapshot: 0, pos: Pos{restoreGenB, 0, 0}, segments: 1},
		{name: "begun later", infos: []generationInfos{whole, restoreInfos(restoreGenB, []at{{0, 40}}, []seg{{0, 0, 41}})}, t: 31, snapshot: 2, pos: Pos{restoreGenA, 3, 0}, segments: 3, skipped: 0},
		{name: "equal times by name", infos: []generationInfos{
			restoreInfos(restoreGenB, []at{{0, 1}}, nil), restoreInfos(restoreGenA, []at{{0, 1}}, nil)}, pos: Pos{restoreGenB, 0, 0}},
		{name: "equal times, begun later", infos: []generationInfos{
			restoreInfos(restoreGenB, []at{{0, 0}}, []seg{{0, 0, 5}}), restoreInfos(restoreGenA, []at{{0, 5}}, []seg{{0, 0, 5}})}, pos: Pos{restoreGenA, 0, 0}, segments: 1},
		{name: "equal times, begun later, other names", infos: []generationInfos{
			restoreInfos(restoreGenA, []at{{0, 0}}, []seg{{0, 0, 5}}), restoreInfos(restoreGenB, []at{{0, 5}}, []seg{{0, 0, 5}})}, pos: Pos{restoreGenB, 0, 0}, segments: 1},
		// The upload of a snapshot ended when the next generation had begun.
		{name: "late snapshot", infos: []generationInfos{
			restoreInfos(restoreGenA, []at{{0, 1}, {1, 20}}, []seg{{0, 0, 1}, {1, 0, 9}}), restoreInfos(restoreGenB, []at{{0, 11}}, []seg{{0, 0, 10}})}, pos: Pos{restoreGenB, 0, 0}, segments: 1},
		{name: "late snapshot, by moment", infos: []generationInfos{
			restoreInfos(restoreGenA, []at{{0, 1}, {1, 20}}, []seg{{0, 0, 1}, {1, 0, 9}}), restoreInfos(restoreGenB, []at{{0, 11}}, []seg{{0, 0, 10}})}, t: 21, pos: Pos{restoreGenB, 0, 0}, segments: 1},
		{name: "late snapshot, before the next", infos: []generationInfos{
			restoreInfos(restoreGenA, []at{{0, 1}, {1, 20}}, []seg{{0, 0, 1}, {1, 0, 9}}), restoreInfos(restoreGenB, []at{{0, 11}}, []seg{{0, 0, 11}})}, t: 10, pos: Pos{restoreGenA, 1, 0}, segments: 2},

		{name: "broken newer generation", infos: []generationInfos{
			restoreInfos(restoreGenA, []at{{0, 50}}, []seg{{0, 0, 51}, {2, 0, 52}}), older}, snapshot: 7, pos: Pos{restoreGenB, 7, 0}, segments: 1, skipped: 1},
		{name: "newer segments without snapshot", infos: []generationInfos{
			restoreInfos(restoreGenA, nil, []seg{{0, 0, 51}}), older}, snapshot: 7, pos: Pos{restoreGenB, 7, 0}, segments: 1, skipped: 1},
		{name: "gap", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}}, []seg{{0, 0, 1}, {1, 0, 2}, {3, 0, 4}})}, err: "index 0000000000000002"},
		{name: "gap at the snapshot", infos: []generationInfos{restoreInfos(restoreGenA, []at{{1, 0}}, []seg{{0, 0, 1}, {2, 0, 4}})}, err: "index 0000000000000001"},
		{name: "gap before a snapshot", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}, {2, 3}}, []seg{{0, 0, 1}, {2, 0, 4}})}, snapshot: 2, pos: Pos{restoreGenA, 2, 0}, segments: 1},
		{name: "newer snapshot without its wal", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}, {1, 3}}, []seg{{0, 0, 1}, {1, 40, 4}})}, err: "0000000000000001/0000000000000000.wal.lz4 is missing"},
		{name: "gap after the moment", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}}, []seg{{0, 0, 1}, {1, 0, 2}, {3, 0, 4}})}, t: 3, pos: Pos{restoreGenA, 1, 0}, segments: 2},
		{name: "broken and too early", infos: []generationInfos{
			restoreInfos(restoreGenA, []at{{0, 1}}, []seg{{0, 0, 1}, {2, 0, 2}}), restoreInfos(restoreGenB, []at{{0, 50}}, nil)}, t: 9, err: "index 0000000000000001"},
		{name: "listed twice", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}, {0, 0}}, []seg{{0, 0, 1}, {0, 0, 1}, {0, 9, 2}})}, pos: Pos{restoreGenA, 0, 9}, segments: 2},

		// The clock ran ahead while segment 1:0 was stored.
		{name: "clock ahead, newest", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}}, []seg{{0, 0, 1}, {1, 0, 900}, {2, 0, 3}})}, pos: Pos{restoreGenA, 2, 0}, segments: 3},
		{name: "clock ahead, later moment", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}}, []seg{{0, 0, 1}, {1, 0, 900}, {2, 0, 3}})}, t: 5, pos: Pos{restoreGenA, 2, 0}, segments: 3},
		{name: "clock ahead, earlier moment", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 0}}, []seg{{0, 0, 1}, {1, 0, 900}, {2, 0, 3}})}, t: 2, pos: Pos{restoreGenA, 0, 0}, segments: 1},
		// It went back before segment 1:0: nothing is left out.
		{name: "clock back, newest", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 100}}, []seg{{0, 0, 101}, {1, 0, 53}})}, pos: Pos{restoreGenA, 1, 0}, segments: 2},
		{name: "clock back, by moment", infos: []generationInfos{restoreInfos(restoreGenA, []at{{0, 100}}, []seg{{0, 0, 101}, {1, 0, 53}})}, t: 100, pos: Pos{restoreGenA, 1, 0}, segments: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 5 {
				infos := restoreShuffled(tt.infos)
				for _, gi := range infos {
					restoreShuffled(gi.snapshots)
					restoreShuffled(gi.segments)
				}
				var moment time.Time
				if tt.t != 0 {
					moment = restoreMoment(tt.t)
				}
				plan, err := planRestore(infos, moment)
				if tt.err != "" {
					if err == nil || !strings.Contains(err.Error(), tt.err) {
						t.Fatalf("error %v, want %q", err, tt.err)
					}
					empty := errors.Is(err, ErrNoGeneration) || errors.Is(err, ErrNoSnapshots)
					if want := tt.err == ErrNoGeneration.Error() || tt.err == ErrNoSnapshots.Error(); empty != want {
						t.Fatalf("replica counts as empty: %t, want %t", empty, want)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if plan.Snapshot.Index != tt.snapshot || plan.Pos != tt.pos || len(plan.Segments) != tt.segments {
					t.Fatalf("snapshot %d, position %v, %d segments; want %d, %v, %d",
						plan.Snapshot.Index, plan.Pos, len(plan.Segments), tt.snapshot, tt.pos, tt.segments)
				}
				if want := 1000 + int64(10*tt.segments); plan.Size != want {
					t.Fatalf("size %d, want %d", plan.Size, want)
				}
				if plan.Generation != tt.pos.Generation || plan.Snapshot.Generation != tt.pos.Generation {
					t.Fatalf("generation %s", plan.Generation)
				}
				if len(plan.Skipped) < tt.skipped {
					t.Fatalf("skipped %v, want %d", plan.Skipped, tt.skipped)
				}
				for i := 1; i < len(plan.Segments); i++ {
					if plan.Segments[i-1].Pos().compare(plan.Segments[i].Pos()) >= 0 {
						t.Fatalf("segments out of order: %v", plan.Segments)
					}
				}
			}
		})
	}
}

func TestPlanRestore_StringNamesWhatIsFetched(t *testing.T) {
	gi := restoreInfos(restoreGenA, [][2]int{{2, 1}}, [][3]int{{2, 0, 2}, {3, 0, 5}})
	plan, err := planRestore([]generationInfos{gi, restoreInfos(restoreGenB, nil, [][3]int{{0, 0, 99}})}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	s := plan.String()
	for _, want := range []string{
		restoreGenA, "snapshot   0000000000000002, 1000 bytes",
		"0000000000000002 to 0000000000000003, 2 segments, 20 bytes",
		"3 files, 1020 bytes",
		"reaches    " + restoreGenA + "/0000000000000003:0000000000000000, " + restoreMoment(5).Format(time.RFC3339),
		"skipped    generation " + restoreGenB,
	} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}

// Any moment at or after the first snapshot restores the commits stored by
// then and none later. PITFALLS rows 22 and 23
func TestRestoreAt_EveryMomentIsExact(t *testing.T) {
	ctx := context.Background()
	s := newRestoreSource(t, 1024)
	type state struct {
		at   time.Time
		want []byte
		pos  Pos
	}
	var states []state
	s.capture()
	start := s.snapshot()
	states = append(states, state{start, s.want(), s.pos})
	for i := range 24 {
		s.insert(3, 400)
		at := s.capture()
		states = append(states, state{at, s.want(), s.pos})
		switch i % 8 {
		case 3:
			s.restart([]string{"RESTART", "TRUNCATE"}[rand.IntN(2)])
		case 6:
			s.backfill()
			s.snapshot()
		}
	}
	for _, st := range states {
		for _, d := range []time.Duration{0, 999 * time.Millisecond} {
			restoreWant(t, st.want, func(path string) error {
				pos, err := RestoreAt(ctx, s.client, path, st.at.Add(d), restoreQuiet())
				if err == nil && pos != st.pos {
					t.Errorf("restored to %v, want %v", pos, st.pos)
				}
				return err
			})
		}
	}
	path := filepath.Join(t.TempDir(), "restored.db")
	_, err := RestoreAt(ctx, s.client, path, start.Add(-time.Nanosecond), restoreQuiet())
	if err == nil || !strings.Contains(err.Error(), start.Format(time.RFC3339Nano)) || errors.Is(err, ErrNoSnapshots) {
		t.Errorf("before the first snapshot: %v", err)
	}
	restoreOnly(t, path)
}

// PITFALLS row 25
func TestRestoreLatest_EmptyAndBrokenGenerationsDoNotHideAGoodOne(t *testing.T) {
	s := newRestoreSource(t, 4096)
	s.snapshot()
	s.insert(3, 3)
	s.capture()
	c := s.client
	c.names["0000000000000001"] = true                                       // empty
	c.names["not a generation"] = true                                       // something else
	c.putSegment(Pos{Generation: "0000000000000002"}, []byte("no snapshot")) // newer
	c.putSnapshot("0000000000000003", 0, []byte("a gap"))                    // newer
	c.putSegment(Pos{Generation: "0000000000000003", Index: 5}, nil)
	c.names["ffffffffffffffff"] = true
	restoreWant(t, s.want(), func(path string) error {
		_, err := RestoreLatest(context.Background(), c, path, restoreQuiet())
		return err
	})
}

func TestRestoreLatest_TellsAnEmptyReplicaFromAFailingOne(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "restored.db")
	c := newRestoreMemClient()
	if _, err := RestoreLatest(ctx, c, path, restoreQuiet()); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("no generation: %v", err)
	}
	c.putSegment(Pos{Generation: restoreGenA}, nil)
	if _, err := RestoreLatest(ctx, c, path, restoreQuiet()); !errors.Is(err, ErrNoSnapshots) {
		t.Errorf("no snapshot: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := RestoreLatest(cancelled, c, path, restoreQuiet()); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoSnapshots) {
		t.Errorf("listing fails: %v", err)
	}
	if _, err := RestoreLatest(ctx, nil, path, restoreQuiet()); err == nil {
		t.Error("no client: no error")
	}
	if _, err := RestoreLatest(ctx, c, "", restoreQuiet()); err == nil {
		t.Error("no filename: no error")
	}
	restoreOnly(t, path)
}

// Restore goes to the end of the index it is given, whatever else is stored.
func TestRestore_ToAnIndex(t *testing.T) {
	ctx := context.Background()
	s := newRestoreSource(t, 4096)
	s.snapshot()
	var wants [][]byte
	for range 4 {
		s.insert(10, 900)
		s.capture()
		s.insert(10, 900)
		s.capture()
		wants = append(wants, s.want())
		s.restart("RESTART")
	}
	s.exec("PRAGMA wal_checkpoint(TRUNCATE)")
	s.snapshot() // at index 4, whose wal is empty
	wants = append(wants, s.want())
	for target, want := range wants {
		for _, snapshot := range []int{0, 4} {
			if snapshot > target || snapshot == 0 && target == 4 {
				continue
			}
			restoreWant(t, want, func(path string) error {
				return Restore(ctx, s.client, path, s.generation, snapshot, target, restoreQuiet())
			})
		}
	}
	for _, tt := range []struct {
		generation       string
		snapshot, target int
		missing          int // index of a *WALNotFoundError, or -1
	}{
		{s.generation, 0, 4, 4},
		{s.generation, 0, 9, 4},
		{s.generation, 4, 5, 4},
		{s.generation, 1, 3, -1},
		{s.generation, 2, 1, -1},
		{s.generation, -1, 1, -1},
		{"nonsense", 0, 1, -1},
		{restoreGenB, 0, 1, -1},
	} {
		path := filepath.Join(t.TempDir(), "restored.db")
		err := Restore(ctx, s.client, path, tt.generation, tt.snapshot, tt.target, restoreQuiet())
		var missing *WALNotFoundError
		if err == nil || errors.As(err, &missing) != (tt.missing >= 0) || missing != nil && missing.Index != tt.missing {
			t.Errorf("%s from %d to %d: %v", tt.generation, tt.snapshot, tt.target, err)
		}
		restoreOnly(t, path)
	}
}

func TestRestoreSnapshot_WritesTheSnapshotAlone(t *testing.T) {
	ctx := context.Background()
	s := newRestoreSource(t, 4096)
	s.insert(10, 900)
	s.restart("TRUNCATE")
	want := s.want()
	s.insert(10, 900)
	s.snapshot()
	restoreWant(t, want, func(path string) error {
		err := RestoreSnapshot(ctx, s.client, path, s.generation, 1, 0o640, 0, 0)
		if info, serr := os.Stat(path); err == nil && (serr != nil || info.Mode().Perm() != 0o640) {
			t.Errorf("mode %v, %v", info.Mode(), serr)
		}
		return err
	})
	path := filepath.Join(t.TempDir(), "restored.db")
	if err := RestoreSnapshot(ctx, s.client, path, s.generation, 2, 0, 0, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such snapshot: %v", err)
	}
	if err := RestoreSnapshot(ctx, s.client, path, s.generation, -1, 0, 0, 0); err == nil {
		t.Error("negative index: no error")
	}
	restoreOnly(t, path)
}
