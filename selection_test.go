package litestream

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// listingClient is a replica of which only the listings exist.
type listingClient struct {
	ReplicaClient
	names     []string
	snapshots map[string][]SnapshotInfo
	segments  map[string][]WALSegmentInfo

	// Errors of the calls, and of the iterations they return.
	generationsErr, snapshotsErr, segmentsErr error
	snapshotIterErr, segmentIterErr           error
}

func (c *listingClient) Generations(context.Context) ([]string, error) {
	return c.names, c.generationsErr
}

func (c *listingClient) Snapshots(_ context.Context, generation string) (SnapshotIterator, error) {
	if c.snapshotsErr != nil {
		return nil, c.snapshotsErr
	}
	itr := NewSnapshotInfoSliceIterator(c.snapshots[generation])
	return &faultySnapshots{SnapshotInfoSliceIterator: *itr, err: c.snapshotIterErr}, nil
}

func (c *listingClient) WALSegments(_ context.Context, generation string) (WALSegmentIterator, error) {
	if c.segmentsErr != nil {
		return nil, c.segmentsErr
	}
	itr := NewWALSegmentInfoSliceIterator(c.segments[generation])
	return &faultySegments{WALSegmentInfoSliceIterator: *itr, err: c.segmentIterErr}, nil
}

// minute returns a moment of a certain day.
func minute(n int) time.Time { return time.Date(2022, 5, 1, 0, n, 0, 0, time.UTC) }

func (c *listingClient) snapshot(generation string, index, minutes int) {
	c.touch(generation)
	c.snapshots[generation] = append(c.snapshots[generation], snapshotAt(generation, index, minute(minutes)))
}

func (c *listingClient) segment(generation string, index int, offset int64, minutes int) {
	c.touch(generation)
	info := segmentAt(generation, index, offset)
	info.CreatedAt = minute(minutes)
	c.segments[generation] = append(c.segments[generation], info)
}

func (c *listingClient) touch(generation string) {
	if c.snapshots == nil {
		c.snapshots, c.segments = map[string][]SnapshotInfo{}, map[string][]WALSegmentInfo{}
	}
	if !slices.Contains(c.names, generation) {
		c.names = append(c.names, generation)
	}
}

const (
	genA = "aaaaaaaaaaaaaaaa"
	genB = "bbbbbbbbbbbbbbbb"
	genC = "cccccccccccccccc"
	genD = "dddddddddddddddd"
)

// newListingClient lists, in no order: A, snapshots and segments; B, newer, a
// snapshot alone; C, empty; D, newest of all, segments but no snapshot.
func newListingClient() *listingClient {
	c := &listingClient{}
	c.touch(genC)
	c.segment(genD, 9, 0, 50)
	c.snapshot(genA, 5, 20)
	c.snapshot(genA, 2, 10)
	c.segment(genA, 6, 32, 32)
	c.segment(genA, 6, 0, 30)
	c.segment(genA, 2, 0, 11)
	c.segment(genA, 5, 0, 21)
	c.snapshot(genB, 1, 40)
	return c
}

// PITFALLS row 25
func TestFindLatestGeneration_SkipsWhatCannotBeRestored(t *testing.T) {
	ctx := t.Context()
	c := newListingClient()
	if got, err := FindLatestGeneration(ctx, c); err != nil || got != genB {
		t.Errorf("%q, %v; want %q", got, err, genB)
	}
	c.segment(genA, 7, 0, 41) // a segment makes A the newest
	if got, err := FindLatestGeneration(ctx, c); err != nil || got != genA {
		t.Errorf("%q, %v; want %q", got, err, genA)
	}
}

// PITFALLS row 27
func TestFindLatestGeneration_DoesNotDependOnTheListing(t *testing.T) {
	c := &listingClient{}
	for _, name := range []string{genA, genB, genC} {
		c.snapshot(name, 0, 10)
	}
	for range 6 {
		c.names = append(c.names[1:], c.names[0])
		if got, err := FindLatestGeneration(t.Context(), c); err != nil || got != genC {
			t.Errorf("listing %v: %q, %v; want %q", c.names, got, err, genC)
		}
		slices.Reverse(c.names)
	}
}

func TestGenerationTimeBounds(t *testing.T) {
	ctx := t.Context()
	c := newListingClient()
	for _, tt := range []struct {
		generation string
		min, max   int
	}{{genA, 10, 32}, {genB, 40, 40}} {
		if min, max, err := GenerationTimeBounds(ctx, c, tt.generation); err != nil || !min.Equal(minute(tt.min)) || !max.Equal(minute(tt.max)) {
			t.Errorf("%s: %s to %s, %v", tt.generation, min, max, err)
		}
	}
	c.snapshot(genA, 8, 60) // newer than every segment
	if _, max, err := GenerationTimeBounds(ctx, c, genA); err != nil || !max.Equal(minute(60)) {
		t.Errorf("updated at %s, %v; want the snapshot's time", max, err)
	}
	if min, max, err := SnapshotTimeBounds(ctx, c, genA); err != nil || !min.Equal(minute(10)) || !max.Equal(minute(60)) {
		t.Errorf("snapshots: %s to %s, %v", min, max, err)
	}
	if min, max, err := WALTimeBounds(ctx, c, genA); err != nil || !min.Equal(minute(11)) || !max.Equal(minute(32)) {
		t.Errorf("segments: %s to %s, %v", min, max, err)
	}
}

// PITFALLS row 25
func TestReplicaClientTimeBounds_SkipsWhatCannotBeRestored(t *testing.T) {
	min, max, err := ReplicaClientTimeBounds(t.Context(), newListingClient())
	if err != nil || !min.Equal(minute(10)) || !max.Equal(minute(40)) {
		t.Errorf("%s to %s, %v; want minutes 10 to 40", min, max, err)
	}
}

func TestFindMaxIndex(t *testing.T) {
	ctx := t.Context()
	c := newListingClient()
	for _, tt := range []struct {
		name string
		find func(context.Context, ReplicaClient, string) (int, error)
		gen  string
		want int
	}{
		{"snapshot", FindMaxSnapshotIndexByGeneration, genA, 5},
		{"wal", FindMaxWALIndexByGeneration, genA, 6},
		{"any", FindMaxIndexByGeneration, genA, 6},
		{"any, without segments", FindMaxIndexByGeneration, genB, 1},
		{"wal, without snapshots", FindMaxWALIndexByGeneration, genD, 9},
	} {
		if got, err := tt.find(ctx, c, tt.gen); err != nil || got != tt.want {
			t.Errorf("%s: %d, %v; want %d", tt.name, got, err, tt.want)
		}
	}
	c.snapshot(genA, 7, 70) // ahead of the segments
	if got, err := FindMaxIndexByGeneration(ctx, c, genA); err != nil || got != 7 {
		t.Errorf("snapshot ahead of segments: %d, %v; want 7", got, err)
	}
}

func TestFindSnapshotForIndex(t *testing.T) {
	ctx := t.Context()
	c := newListingClient()
	for index, want := range map[int]int{2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 1000: 5} {
		if got, err := FindSnapshotForIndex(ctx, c, genA, index); err != nil || got != want {
			t.Errorf("index %d: %d, %v; want %d", index, got, err, want)
		}
	}
	for _, index := range []int{-1, 0, 1} {
		_, err := FindSnapshotForIndex(ctx, c, genA, index)
		if err == nil || errors.Is(err, ErrNoSnapshots) || !strings.Contains(err.Error(), FormatIndex(2)) {
			t.Errorf("index %d: %v, want an error that names the first snapshot and is not ErrNoSnapshots", index, err)
		}
	}
}

func TestFindIndexByTimestamp(t *testing.T) {
	ctx := t.Context()
	c := newListingClient()
	for _, tt := range []struct {
		at   time.Time
		want int
	}{
		{minute(10), 2},
		{minute(19), 2},
		{minute(20), 5}, // of the snapshot
		{minute(29), 5},
		{minute(30).Add(-1), 5},
		{minute(30), 6}, // of a segment
		{minute(31), 6},
		{minute(9999), 6},
	} {
		if got, err := FindIndexByTimestamp(ctx, c, genA, tt.at); err != nil || got != tt.want {
			t.Errorf("%s: %d, %v; want %d", tt.at, got, err, tt.want)
		}
	}
	if got, err := FindIndexByTimestamp(ctx, c, genB, minute(40)); err != nil || got != 1 {
		t.Errorf("without segments: %d, %v", got, err)
	}
}

// PITFALLS row 23
func TestFindIndexByTimestamp_BeforeTheFirstSnapshotIsAnError(t *testing.T) {
	c := newListingClient()
	c.segment(genA, 1, 0, 5) // a segment that no snapshot precedes
	for _, at := range []time.Time{{}, minute(5), minute(10).Add(-1)} {
		index, err := FindIndexByTimestamp(t.Context(), c, genA, at)
		if err == nil || index != 0 || errors.Is(err, ErrNoSnapshots) || !strings.Contains(err.Error(), minute(10).Format(time.RFC3339)) {
			t.Errorf("%s: %d, %v; want an error that names the first moment", at, index, err)
		}
	}
}

// selectionCalls are all functions that ask a client, on generation genA.
var selectionCalls = map[string]func(context.Context, ReplicaClient) error{
	"FindLatestGeneration": func(ctx context.Context, c ReplicaClient) error { _, err := FindLatestGeneration(ctx, c); return err },
	"ReplicaClientTimeBounds": func(ctx context.Context, c ReplicaClient) error {
		_, _, err := ReplicaClientTimeBounds(ctx, c)
		return err
	},
	"GenerationTimeBounds": func(ctx context.Context, c ReplicaClient) error {
		_, _, err := GenerationTimeBounds(ctx, c, genA)
		return err
	},
	"SnapshotTimeBounds": func(ctx context.Context, c ReplicaClient) error {
		_, _, err := SnapshotTimeBounds(ctx, c, genA)
		return err
	},
	"WALTimeBounds": func(ctx context.Context, c ReplicaClient) error { _, _, err := WALTimeBounds(ctx, c, genA); return err },
	"FindMaxIndexByGeneration": func(ctx context.Context, c ReplicaClient) error {
		_, err := FindMaxIndexByGeneration(ctx, c, genA)
		return err
	},
	"FindMaxSnapshotIndexByGeneration": func(ctx context.Context, c ReplicaClient) error {
		_, err := FindMaxSnapshotIndexByGeneration(ctx, c, genA)
		return err
	},
	"FindMaxWALIndexByGeneration": func(ctx context.Context, c ReplicaClient) error {
		_, err := FindMaxWALIndexByGeneration(ctx, c, genA)
		return err
	},
	"FindSnapshotForIndex": func(ctx context.Context, c ReplicaClient) error {
		_, err := FindSnapshotForIndex(ctx, c, genA, 9)
		return err
	},
	"FindIndexByTimestamp": func(ctx context.Context, c ReplicaClient) error {
		_, err := FindIndexByTimestamp(ctx, c, genA, minute(99))
		return err
	},
}

func TestSelection_EmptyReplica(t *testing.T) {
	want := map[string]error{
		"FindLatestGeneration":        ErrNoGeneration,
		"ReplicaClientTimeBounds":     ErrNoGeneration,
		"WALTimeBounds":               ErrNoWALSegments,
		"FindMaxWALIndexByGeneration": ErrNoWALSegments,
	}
	segmentsAlone := &listingClient{}
	segmentsAlone.segment(genA, 1, 0, 10)
	for name, call := range selectionCalls {
		err := call(t.Context(), &listingClient{names: []string{genA}})
		sentinel := want[name]
		if sentinel == nil {
			sentinel = ErrNoSnapshots
		}
		if !errors.Is(err, sentinel) {
			t.Errorf("%s: %v, want %v", name, err, sentinel)
		}
		if sentinel != ErrNoGeneration && !strings.Contains(err.Error(), genA) {
			t.Errorf("%s: %q does not name the generation", name, err)
		}
		// Segments without a snapshot restore nothing.
		if err := call(t.Context(), segmentsAlone); sentinel != ErrNoWALSegments && !errors.Is(err, sentinel) {
			t.Errorf("%s of segments alone: %v, want %v", name, err, sentinel)
		}
	}
}

// A client that fails must not look like a replica that is empty: the host
// would start a fresh database. PITFALLS row 10
func TestSelection_ClientErrorsAreNeverSwallowed(t *testing.T) {
	broken := errors.New("broken")
	all := []string{"generations", "snapshots", "snapshot iteration", "segments", "segment iteration"}
	asks := map[string][]string{ // what each function asks for
		"FindLatestGeneration":             all,
		"ReplicaClientTimeBounds":          all,
		"GenerationTimeBounds":             all[1:],
		"FindMaxIndexByGeneration":         all[1:],
		"FindIndexByTimestamp":             all[1:],
		"SnapshotTimeBounds":               all[1:3],
		"FindMaxSnapshotIndexByGeneration": all[1:3],
		"FindSnapshotForIndex":             all[1:3],
		"WALTimeBounds":                    all[3:],
		"FindMaxWALIndexByGeneration":      all[3:],
	}
	for name, call := range selectionCalls {
		for _, what := range asks[name] {
			c := newListingClient()
			switch what {
			case "generations":
				c.generationsErr = broken
			case "snapshots":
				c.snapshotsErr = broken
			case "snapshot iteration":
				c.snapshotIterErr = broken
			case "segments":
				c.segmentsErr = broken
			case "segment iteration":
				c.segmentIterErr = broken
			}
			err := call(t.Context(), c)
			if !errors.Is(err, broken) {
				t.Errorf("%s, failing %s: %v", name, what, err)
			}
			for _, sentinel := range []error{ErrNoGeneration, ErrNoSnapshots, ErrNoWALSegments} {
				if errors.Is(err, sentinel) {
					t.Errorf("%s, failing %s: %v matches %v", name, what, err, sentinel)
				}
			}
		}
	}
}

func TestFilterSnapshotsAfter_IncludesTheMomentItself(t *testing.T) {
	a := []SnapshotInfo{snapshotAt(genA, 0, minute(1)), snapshotAt(genA, 1, minute(2)), snapshotAt(genA, 2, minute(3))}
	before := slices.Clone(a)
	if got := FilterSnapshotsAfter(a, minute(2)); !slices.Equal(got, a[1:]) {
		t.Errorf("%v", got)
	}
	if got := FilterSnapshotsAfter(a, minute(4)); len(got) != 0 {
		t.Errorf("after the last: %v", got)
	}
	if !slices.Equal(a, before) {
		t.Error("the argument was changed")
	}
}

func TestFindMinSnapshotByGeneration(t *testing.T) {
	a := []SnapshotInfo{snapshotAt(genB, 0, minute(1)), snapshotAt(genA, 7, minute(2)), snapshotAt(genA, 3, minute(3)), snapshotAt(genA, 5, minute(4))}
	if got := FindMinSnapshotByGeneration(a, genA); got == nil || *got != a[2] {
		t.Errorf("%v, want %v", got, a[2])
	}
	if got := FindMinSnapshotByGeneration(a, genC); got != nil {
		t.Errorf("of a generation without snapshots: %v", got)
	}
}
