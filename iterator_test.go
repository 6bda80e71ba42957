package litestream

import (
	"errors"
	"slices"
	"sort"
	"testing"
	"time"
)

func segmentAt(generation string, index int, offset int64) WALSegmentInfo {
	return WALSegmentInfo{Generation: generation, Index: index, Offset: offset, Size: 7, CreatedAt: time.Unix(int64(index), offset).UTC()}
}

func snapshotAt(generation string, index int, createdAt time.Time) SnapshotInfo {
	return SnapshotInfo{Generation: generation, Index: index, Size: 7, CreatedAt: createdAt}
}

const otherGeneration = "1111111111111111"

// faultySnapshots yields its items, then fails.
type faultySnapshots struct {
	SnapshotInfoSliceIterator
	err, closeErr error
	closed        int
}

func (itr *faultySnapshots) Err() error { return itr.err }
func (itr *faultySnapshots) Close() error {
	itr.closed++
	return itr.closeErr
}

// faultySegments yields its items, then fails.
type faultySegments struct {
	WALSegmentInfoSliceIterator
	err, closeErr error
	closed        int
}

func (itr *faultySegments) Err() error { return itr.err }
func (itr *faultySegments) Close() error {
	itr.closed++
	return itr.closeErr
}

func TestInfoSlices_Sort(t *testing.T) {
	want := []WALSegmentInfo{
		segmentAt(testGeneration, 0, 0), segmentAt(testGeneration, 0, 32), segmentAt(testGeneration, 1, 0),
		segmentAt(testGeneration, 10, 4152), segmentAt(otherGeneration, 0, 0),
	}
	segments := slices.Clone(want)
	slices.Reverse(segments)
	sort.Sort(WALSegmentInfoSlice(segments))
	if !slices.Equal(segments, want) {
		t.Errorf("segments: %v", segments)
	}
	snapshots := []SnapshotInfo{{Generation: otherGeneration}, {Generation: testGeneration, Index: 9}, {Generation: testGeneration, Index: 2}}
	sort.Sort(SnapshotInfoSlice(snapshots))
	if snapshots[0].Index != 2 || snapshots[1].Index != 9 || snapshots[2].Generation != otherGeneration {
		t.Errorf("snapshots: %v", snapshots)
	}
	wals := []WALInfo{{Generation: otherGeneration}, {Generation: testGeneration, Index: 9}, {Generation: testGeneration, Index: 2}}
	sort.Sort(WALInfoSlice(wals))
	if wals[0].Index != 2 || wals[1].Index != 9 || wals[2].Generation != otherGeneration {
		t.Errorf("wals: %v", wals)
	}
}

func TestInfo_Pos(t *testing.T) {
	segment := segmentAt(testGeneration, 3, 4)
	if got, want := segment.Pos(), (Pos{testGeneration, 3, 4}); got != want {
		t.Errorf("segment: %v, want %v", got, want)
	}
	snapshot := snapshotAt(testGeneration, 3, time.Now())
	if got, want := snapshot.Pos(), (Pos{testGeneration, 3, 0}); got != want {
		t.Errorf("snapshot: %v, want %v", got, want)
	}
}

func TestSliceIterators_YieldAllAndStopAtClose(t *testing.T) {
	a := []WALSegmentInfo{segmentAt(testGeneration, 2, 0), segmentAt(testGeneration, 1, 0)}
	itr := NewWALSegmentInfoSliceIterator(a)
	for i := range a {
		if !itr.Next() || itr.WALSegment() != a[i] {
			t.Fatalf("segment %d: %v, want %v", i, itr.WALSegment(), a[i])
		}
	}
	if itr.Next() || itr.Err() != nil {
		t.Fatal("a third segment, or an error")
	}
	itr = NewWALSegmentInfoSliceIterator(a)
	if err := itr.Close(); err != nil || itr.Next() {
		t.Fatalf("a segment after close, %v", err)
	}

	b := []SnapshotInfo{snapshotAt(testGeneration, 2, time.Now()), snapshotAt(testGeneration, 1, time.Now())}
	sitr := NewSnapshotInfoSliceIterator(b)
	for i := range b {
		if !sitr.Next() || sitr.Snapshot() != b[i] {
			t.Fatalf("snapshot %d: %v, want %v", i, sitr.Snapshot(), b[i])
		}
	}
	if sitr.Next() || sitr.Err() != nil {
		t.Fatal("a third snapshot, or an error")
	}
	sitr = NewSnapshotInfoSliceIterator(b)
	if err := sitr.Close(); err != nil || sitr.Next() {
		t.Fatalf("a snapshot after close, %v", err)
	}
}

// PITFALLS row 27
func TestSliceIterator_SortsWhateverTheClientsOrder(t *testing.T) {
	a, err := SliceWALSegmentIterator(NewWALSegmentInfoSliceIterator([]WALSegmentInfo{
		segmentAt(testGeneration, 1, 0), segmentAt(testGeneration, 0, 32), segmentAt(testGeneration, 0, 0),
	}))
	if err != nil || !sort.IsSorted(WALSegmentInfoSlice(a)) || len(a) != 3 {
		t.Errorf("segments: %v, %v", a, err)
	}
	b, err := SliceSnapshotIterator(NewSnapshotInfoSliceIterator([]SnapshotInfo{{Index: 5}, {Index: 3}, {Index: 4}}))
	if err != nil || !sort.IsSorted(SnapshotInfoSlice(b)) || len(b) != 3 {
		t.Errorf("snapshots: %v, %v", b, err)
	}
}

// PITFALLS row 10
func TestSliceIterator_ReturnsErrorsOfIterationAndClose(t *testing.T) {
	iterErr, closeErr := errors.New("iteration"), errors.New("close")
	itr := &faultySegments{WALSegmentInfoSliceIterator: *NewWALSegmentInfoSliceIterator([]WALSegmentInfo{segmentAt(testGeneration, 0, 0)}), err: iterErr, closeErr: closeErr}
	if _, err := SliceWALSegmentIterator(itr); !errors.Is(err, iterErr) || !errors.Is(err, closeErr) || itr.closed != 1 {
		t.Errorf("segments: %v, closed %d times", err, itr.closed)
	}
	sitr := &faultySnapshots{err: iterErr, closeErr: closeErr}
	if _, err := SliceSnapshotIterator(sitr); !errors.Is(err, iterErr) || !errors.Is(err, closeErr) || sitr.closed != 1 {
		t.Errorf("snapshots: %v, closed %d times", err, sitr.closed)
	}
}

func TestBufferedWALSegmentIterator_PeekDoesNotMove(t *testing.T) {
	a := []WALSegmentInfo{segmentAt(testGeneration, 0, 0), segmentAt(testGeneration, 0, 32), segmentAt(testGeneration, 1, 0)}
	itr := NewBufferedWALSegmentIterator(NewWALSegmentInfoSliceIterator(a))
	for i := range a {
		for range 2 {
			if info, ok := itr.Peek(); !ok || info != a[i] {
				t.Fatalf("peek %d: %v, %t", i, info, ok)
			}
			if i > 0 && itr.WALSegment() != a[i-1] {
				t.Fatalf("peek %d moved the iterator to %v", i, itr.WALSegment())
			}
		}
		if !itr.Next() || itr.WALSegment() != a[i] {
			t.Fatalf("next %d: %v", i, itr.WALSegment())
		}
	}
	if info, ok := itr.Peek(); ok || info != (WALSegmentInfo{}) || itr.Next() {
		t.Fatalf("peek at the end: %v, %t", info, ok)
	}
}

func TestBufferedWALSegmentIterator_PassesErrorsOn(t *testing.T) {
	iterErr, closeErr := errors.New("iteration"), errors.New("close")
	inner := &faultySegments{err: iterErr, closeErr: closeErr}
	itr := NewBufferedWALSegmentIterator(inner)
	if itr.Next() || itr.Err() != iterErr || itr.Close() != closeErr || inner.closed != 1 {
		t.Errorf("next, err %v, closed %d times", itr.Err(), inner.closed)
	}
}

// A live iterator has an end only for the moment.
func TestBufferedWALSegmentIterator_GoesOnAfterAnEnd(t *testing.T) {
	live := NewFileWALSegmentIterator(t.TempDir(), testGeneration, nil)
	itr := NewBufferedWALSegmentIterator(live)
	if _, ok := itr.Peek(); ok {
		t.Fatal("a segment of nothing")
	}
	if err := live.Append(segmentAt(testGeneration, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if info, ok := itr.Peek(); !ok || info != segmentAt(testGeneration, 0, 0) || !itr.Next() {
		t.Fatalf("appended segment: %v, %t", info, ok)
	}
}
