package litestream

import (
	"cmp"
	"errors"
	"io"
	"sort"
	"time"
)

// SnapshotInfo describes a snapshot on a replica.
type SnapshotInfo struct {
	Generation string
	Index      int       // WAL index from whose start the snapshot is completed
	Size       int64     // compressed, in bytes
	CreatedAt  time.Time // when the replica stored it
}

// Pos returns the start of the snapshot's WAL index.
func (info *SnapshotInfo) Pos() Pos { return Pos{Generation: info.Generation, Index: info.Index} }

// WALInfo describes a whole WAL file.
type WALInfo struct {
	Generation string
	Index      int
	CreatedAt  time.Time
}

// WALSegmentInfo describes one contiguous piece of one WAL index.
type WALSegmentInfo struct {
	Generation string
	Index      int
	Offset     int64     // of its first byte in the WAL
	Size       int64     // compressed, in bytes
	CreatedAt  time.Time // when it was stored
}

// Pos returns the position at which the segment begins.
func (info *WALSegmentInfo) Pos() Pos {
	return Pos{Generation: info.Generation, Index: info.Index, Offset: info.Offset}
}

// SnapshotIterator walks over snapshots. It is not safe for concurrent use.
// Check Err after Next returned false: an iteration may end early.
type SnapshotIterator interface {
	io.Closer
	Next() bool             // moves to the next snapshot, if there is one
	Err() error             // the first error of the iteration
	Snapshot() SnapshotInfo // the snapshot that Next moved to
}

// WALSegmentIterator walks over WAL segments. It is not safe for concurrent
// use. Check Err after Next returned false: an iteration may end early.
type WALSegmentIterator interface {
	io.Closer
	Next() bool                 // moves to the next segment, if there is one
	Err() error                 // the first error of the iteration
	WALSegment() WALSegmentInfo // the segment that Next moved to
}

// SnapshotInfoSlice sorts by generation, then index.
type SnapshotInfoSlice []SnapshotInfo

func (a SnapshotInfoSlice) Len() int      { return len(a) }
func (a SnapshotInfoSlice) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a SnapshotInfoSlice) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(a[i].Generation, a[j].Generation), cmp.Compare(a[i].Index, a[j].Index)) < 0
}

// WALInfoSlice sorts by generation, then index.
type WALInfoSlice []WALInfo

func (a WALInfoSlice) Len() int      { return len(a) }
func (a WALInfoSlice) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a WALInfoSlice) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(a[i].Generation, a[j].Generation), cmp.Compare(a[i].Index, a[j].Index)) < 0
}

// WALSegmentInfoSlice sorts by generation, index, then offset.
type WALSegmentInfoSlice []WALSegmentInfo

func (a WALSegmentInfoSlice) Len() int      { return len(a) }
func (a WALSegmentInfoSlice) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a WALSegmentInfoSlice) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(a[i].Generation, a[j].Generation),
		cmp.Compare(a[i].Index, a[j].Index), cmp.Compare(a[i].Offset, a[j].Offset)) < 0
}

// SnapshotInfoSliceIterator iterates over a slice. Only Close ends it early.
type SnapshotInfoSliceIterator struct {
	cur  SnapshotInfo
	rest []SnapshotInfo
}

// NewSnapshotInfoSliceIterator iterates over a in its order. It does not copy a.
func NewSnapshotInfoSliceIterator(a []SnapshotInfo) *SnapshotInfoSliceIterator {
	return &SnapshotInfoSliceIterator{rest: a}
}

// Close ends the iteration. It always returns nil.
func (itr *SnapshotInfoSliceIterator) Close() error { itr.rest = nil; return nil }

// Next moves to the next snapshot and reports whether there is one.
func (itr *SnapshotInfoSliceIterator) Next() bool {
	if len(itr.rest) == 0 {
		return false
	}
	itr.cur, itr.rest = itr.rest[0], itr.rest[1:]
	return true
}

// Err always returns nil.
func (itr *SnapshotInfoSliceIterator) Err() error { return nil }

// Snapshot returns the snapshot that Next moved to.
func (itr *SnapshotInfoSliceIterator) Snapshot() SnapshotInfo { return itr.cur }

// WALSegmentInfoSliceIterator iterates over a slice. Only Close ends it early.
type WALSegmentInfoSliceIterator struct {
	cur  WALSegmentInfo
	rest []WALSegmentInfo
}

// NewWALSegmentInfoSliceIterator iterates over a in its order. It does not copy a.
func NewWALSegmentInfoSliceIterator(a []WALSegmentInfo) *WALSegmentInfoSliceIterator {
	return &WALSegmentInfoSliceIterator{rest: a}
}

// Close ends the iteration. It always returns nil.
func (itr *WALSegmentInfoSliceIterator) Close() error { itr.rest = nil; return nil }

// Next moves to the next segment and reports whether there is one.
func (itr *WALSegmentInfoSliceIterator) Next() bool {
	if len(itr.rest) == 0 {
		return false
	}
	itr.cur, itr.rest = itr.rest[0], itr.rest[1:]
	return true
}

// Err always returns nil.
func (itr *WALSegmentInfoSliceIterator) Err() error { return nil }

// WALSegment returns the segment that Next moved to.
func (itr *WALSegmentInfoSliceIterator) WALSegment() WALSegmentInfo { return itr.cur }

// SliceSnapshotIterator reads itr to its end and closes it. The slice is
// sorted, whatever the iterator's order.
func SliceSnapshotIterator(itr SnapshotIterator) ([]SnapshotInfo, error) {
	var a []SnapshotInfo
	for itr.Next() {
		a = append(a, itr.Snapshot())
	}
	sort.Sort(SnapshotInfoSlice(a))
	return a, errors.Join(itr.Err(), itr.Close())
}

// SliceWALSegmentIterator reads itr to its end and closes it. The slice is
// sorted, whatever the iterator's order.
func SliceWALSegmentIterator(itr WALSegmentIterator) ([]WALSegmentInfo, error) {
	var a []WALSegmentInfo
	for itr.Next() {
		a = append(a, itr.WALSegment())
	}
	sort.Sort(WALSegmentInfoSlice(a))
	return a, errors.Join(itr.Err(), itr.Close())
}

// BufferedWALSegmentIterator can look at the next segment without moving.
type BufferedWALSegmentIterator struct {
	itr      WALSegmentIterator
	cur      WALSegmentInfo
	buf      WALSegmentInfo
	buffered bool
}

// NewBufferedWALSegmentIterator wraps itr, which it closes.
func NewBufferedWALSegmentIterator(itr WALSegmentIterator) *BufferedWALSegmentIterator {
	return &BufferedWALSegmentIterator{itr: itr}
}

// Close closes the underlying iterator.
func (itr *BufferedWALSegmentIterator) Close() error { return itr.itr.Close() }

// Err returns the error of the underlying iterator.
func (itr *BufferedWALSegmentIterator) Err() error { return itr.itr.Err() }

// Peek returns the segment that Next will move to, if there is one.
func (itr *BufferedWALSegmentIterator) Peek() (info WALSegmentInfo, ok bool) {
	if !itr.buffered {
		if !itr.itr.Next() {
			return WALSegmentInfo{}, false
		}
		itr.buf, itr.buffered = itr.itr.WALSegment(), true
	}
	return itr.buf, true
}

// Next moves to the next segment and reports whether there is one.
func (itr *BufferedWALSegmentIterator) Next() bool {
	if _, ok := itr.Peek(); !ok {
		return false
	}
	itr.cur, itr.buffered = itr.buf, false
	return true
}

// WALSegment returns the segment that Next moved to.
func (itr *BufferedWALSegmentIterator) WALSegment() WALSegmentInfo { return itr.cur }
