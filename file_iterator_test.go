package litestream

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// shadowDir is a directory of segments whose content does not matter.
type shadowDir struct {
	t   testing.TB
	dir string
}

func newShadowDir(t testing.TB) shadowDir { return shadowDir{t, t.TempDir()} }

// add writes a segment of 7 bytes and returns its info.
func (d shadowDir) add(index int, offset int64) WALSegmentInfo {
	d.t.Helper()
	info := segmentAt(testGeneration, index, offset)
	name := d.write(index, FormatOffset(offset)+WALSegmentExt)
	if err := os.Chtimes(name, info.CreatedAt, info.CreatedAt); err != nil {
		d.t.Fatal(err)
	}
	return info
}

func (d shadowDir) write(index int, name string) string {
	d.t.Helper()
	dir := d.indexDir(index)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		d.t.Fatal(err)
	}
	name = filepath.Join(dir, name)
	if err := os.WriteFile(name, []byte("segment"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return name
}

func (d shadowDir) indexDir(index int) string { return filepath.Join(d.dir, FormatIndex(index)) }

func (d shadowDir) iterate(indexes ...int) *FileWALSegmentIterator {
	itr := NewFileWALSegmentIterator(d.dir, testGeneration, indexes)
	d.t.Cleanup(func() { itr.Close() })
	return itr
}

// wantNext checks that exactly these segments follow.
func wantNext(t testing.TB, itr WALSegmentIterator, want ...WALSegmentInfo) {
	t.Helper()
	for i, info := range want {
		if !itr.Next() {
			t.Fatalf("no segment %d, err %v; want %v", i, itr.Err(), info)
		}
		if got := itr.WALSegment(); got != info {
			t.Fatalf("segment %d is %+v, want %+v", i, got, info)
		}
	}
	if itr.Next() {
		t.Fatalf("unexpected segment %+v", itr.WALSegment())
	}
}

func wantNotified(t testing.TB, itr *FileWALSegmentIterator, want bool) {
	t.Helper()
	got := false
	select {
	case <-itr.NotifyCh():
		got = true
	default:
	}
	if got != want {
		t.Fatalf("notified %t, want %t", got, want)
	}
}

func mustAppend(t testing.TB, itr *FileWALSegmentIterator, info WALSegmentInfo) {
	t.Helper()
	if err := itr.Append(info); err != nil {
		t.Fatal(err)
	}
}

func TestFileWALSegmentIterator_WalksInOrder(t *testing.T) {
	d := newShadowDir(t)
	a, b := d.add(1, 0), d.add(1, 0x1000)
	c, e := d.add(2, 0), d.add(10, 32)
	d.add(3, 0) // not asked for
	itr := d.iterate(10, 1, 2, 2)
	if got := itr.Indexes(); !slices.Equal(got, []int{1, 2, 10}) {
		t.Fatalf("indexes %v", got)
	}
	if got := itr.Generation(); got != testGeneration {
		t.Fatalf("generation %q", got)
	}
	if !itr.Next() || itr.WALSegment() != a {
		t.Fatalf("first segment %+v", itr.WALSegment())
	}
	if got := itr.Indexes(); !slices.Equal(got, []int{2, 10}) {
		t.Fatalf("indexes %v after the first directory was read", got)
	}
	wantNext(t, itr, b, c, e)
	if err := itr.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestFileWALSegmentIterator_IgnoresOtherNames(t *testing.T) {
	d := newShadowDir(t)
	a := d.add(0, 0)
	for _, name := range []string{
		FormatOffset(32) + WALSegmentExt + ".12-1.tmp", FormatOffset(32) + ".wal", FormatOffset(32),
		"20" + WALSegmentExt, "000000000000002G" + WALSegmentExt, WALSegmentExt, ".DS_Store",
	} {
		d.write(0, name)
	}
	if err := os.Mkdir(filepath.Join(d.indexDir(0), FormatOffset(64)+WALSegmentExt), 0o700); err != nil {
		t.Fatal(err)
	}
	itr := d.iterate(0)
	wantNext(t, itr, a)
	if err := itr.Err(); err != nil {
		t.Fatal(err)
	}
}

// A hole in the walk must not look like its end. PITFALLS row 16
func TestFileWALSegmentIterator_PrunedDirectoryIsAnError(t *testing.T) {
	d := newShadowDir(t)
	a := d.add(0, 0)
	d.add(1, 0)
	last := d.add(2, 0)
	itr := d.iterate(0, 1, 2)
	if !itr.Next() || itr.WALSegment() != a {
		t.Fatal("no first segment")
	}
	if err := os.RemoveAll(d.indexDir(1)); err != nil {
		t.Fatal(err)
	}
	wantNext(t, itr)
	if err := itr.Err(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), FormatIndex(1)) {
		t.Fatalf("err %v, want fs.ErrNotExist that names the directory", err)
	}
	if err := itr.Append(last); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("append to an ended iterator: %v", err)
	}
}

func TestFileWALSegmentIterator_AppendContinues(t *testing.T) {
	d := newShadowDir(t)
	a := d.add(0, 0)
	itr := d.iterate(0)
	wantNext(t, itr, a)
	wantNotified(t, itr, false)

	b := d.add(0, 32) // same index
	mustAppend(t, itr, b)
	wantNotified(t, itr, true)
	wantNext(t, itr, b)

	c := d.add(1, 0) // next index
	e := d.add(1, 32)
	mustAppend(t, itr, c)
	mustAppend(t, itr, e)
	f := d.add(2, 0) // and one more before Next was called
	mustAppend(t, itr, f)
	if got := itr.Indexes(); !slices.Equal(got, []int{2}) {
		t.Fatalf("indexes %v, want [2]", got)
	}
	wantNotified(t, itr, true)
	wantNotified(t, itr, false)
	wantNext(t, itr, c, e, f)
	if err := itr.Err(); err != nil {
		t.Fatal(err)
	}
}

// An iterator is shared with the database before its first directory is read,
// so Append tells of segments that the listing shows as well. PITFALLS row 10
func TestFileWALSegmentIterator_AppendIsIdempotent(t *testing.T) {
	d := newShadowDir(t)
	a, b := d.add(0, 0), d.add(0, 32)
	itr := d.iterate(0)
	mustAppend(t, itr, b) // pending: the listing has it
	wantNotified(t, itr, false)
	if !itr.Next() || itr.WALSegment() != a {
		t.Fatalf("first segment %+v", itr.WALSegment())
	}
	mustAppend(t, itr, a) // visited
	mustAppend(t, itr, b) // known
	wantNext(t, itr, b)
	mustAppend(t, itr, b) // visited
	wantNotified(t, itr, false)
	wantNext(t, itr)

	c, e := d.add(1, 0), d.add(1, 32)
	mustAppend(t, itr, e) // its index is new: read the directory, c is in it
	mustAppend(t, itr, e)
	if got := itr.Indexes(); !slices.Equal(got, []int{1}) {
		t.Fatalf("indexes %v, want [1]", got)
	}
	wantNext(t, itr, c, e)
	if err := itr.Err(); err != nil {
		t.Fatal(err)
	}
}

func TestFileWALSegmentIterator_AppendExtendsPendingIndexes(t *testing.T) {
	d := newShadowDir(t)
	a, b, c := d.add(4, 0), d.add(5, 0), d.add(6, 0)
	itr := d.iterate(4)
	mustAppend(t, itr, b)
	mustAppend(t, itr, c)
	if got := itr.Indexes(); !slices.Equal(got, []int{4, 5, 6}) {
		t.Fatalf("indexes %v", got)
	}
	wantNext(t, itr, a, b, c)
}

func TestFileWALSegmentIterator_EmptyDirectoryThenAppend(t *testing.T) {
	d := newShadowDir(t)
	if err := os.Mkdir(d.indexDir(0), 0o700); err != nil {
		t.Fatal(err)
	}
	itr := d.iterate(0)
	wantNext(t, itr)
	a, b := d.add(0, 0), d.add(0, 32)
	mustAppend(t, itr, b)
	wantNext(t, itr, a, b)
}

// Directories are read without the lock, so that Append never waits for a
// disk. What is appended meanwhile comes once, whether it was listed or not.
func TestFileWALSegmentIterator_AppendWhileListing(t *testing.T) {
	d := newShadowDir(t)
	a, b := d.add(0, 0), d.add(0, 32)
	c, e := segmentAt(testGeneration, 0, 64), segmentAt(testGeneration, 1, 0)
	itr := d.iterate(0)
	if _, _, more := itr.pop(); !more {
		t.Fatal("no directory to read")
	}
	mustAppend(t, itr, b) // listed
	mustAppend(t, itr, c) // not listed
	mustAppend(t, itr, c)
	d.add(1, 0)
	mustAppend(t, itr, e)
	itr.addListing([]WALSegmentInfo{a, b}, nil)
	wantNext(t, itr, a, b, c, e)
}

func TestFileWALSegmentIterator_CloseWhileListing(t *testing.T) {
	d := newShadowDir(t)
	a := d.add(0, 0)
	itr := d.iterate(0)
	itr.pop()
	if err := itr.Close(); err != nil {
		t.Fatal(err)
	}
	itr.addListing([]WALSegmentInfo{a}, nil)
	wantNext(t, itr)
}

func TestFileWALSegmentIterator_AppendRefusesAHole(t *testing.T) {
	d := newShadowDir(t)
	a := d.add(0, 0)
	itr := d.iterate(0)
	wantNext(t, itr, a)
	err := itr.Append(segmentAt(testGeneration, 2, 0))
	if err == nil || itr.Err() != err {
		t.Fatalf("append of index 2 after 0: %v, err %v", err, itr.Err())
	}
	wantNotified(t, itr, true)
}

func TestFileWALSegmentIterator_AppendOfAnotherGeneration(t *testing.T) {
	d := newShadowDir(t)
	d.add(0, 0)
	itr := d.iterate(0)
	err := itr.Append(segmentAt(otherGeneration, 0, 0))
	if !errors.Is(err, ErrGenerationChanged) || !errors.Is(itr.Err(), ErrGenerationChanged) {
		t.Fatalf("append: %v, err %v; want ErrGenerationChanged", err, itr.Err())
	}
	wantNotified(t, itr, true)
	wantNext(t, itr)
}

func TestFileWALSegmentIterator_SetErrKeepsTheFirst(t *testing.T) {
	d := newShadowDir(t)
	d.add(0, 0)
	itr := d.iterate(0)
	itr.SetErr(nil)
	wantNotified(t, itr, false)
	first := errors.New("first")
	itr.SetErr(first)
	itr.SetErr(errors.New("second"))
	wantNotified(t, itr, true)
	wantNext(t, itr)
	if err := itr.Err(); err != first {
		t.Fatalf("err %v, want the first", err)
	}
	if err := itr.Append(segmentAt(testGeneration, 0, 32)); err != first {
		t.Fatalf("append: %v, want the first error", err)
	}
}

func TestFileWALSegmentIterator_Close(t *testing.T) {
	d := newShadowDir(t)
	a := d.add(0, 0)
	itr := d.iterate(0)
	calls := 0
	itr.onClose = func(got *FileWALSegmentIterator) {
		calls++
		if got != itr {
			t.Error("onClose of another iterator")
		}
		got.Indexes() // deadlocks if the lock is held
	}
	for range 2 {
		if err := itr.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 1 {
		t.Fatalf("onClose called %d times, want once", calls)
	}
	wantNext(t, itr)
	if err := itr.Append(a); !errors.Is(err, errIteratorClosed) {
		t.Fatalf("append after close: %v", err)
	}
	if err := itr.Err(); err != nil {
		t.Fatalf("err after close: %v", err)
	}
}

// One goroutine writes and appends as the database does, another reads as a
// replica does: every segment comes once and in order. Run it with -race.
func TestFileWALSegmentIterator_ConcurrentAppend(t *testing.T) {
	const indexes, perIndex = 40, 25
	d := newShadowDir(t)
	d.add(0, 0)
	itr := d.iterate(0)
	done := errors.New("done")
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range indexes {
			for j := range perIndex {
				info := d.add(i, int64(j)*32)
				for range 2 {
					if err := itr.Append(info); err != nil {
						t.Errorf("append %s: %v", info.Pos(), err)
						return
					}
				}
			}
		}
	})
	defer wg.Wait()
	timeout := time.After(time.Minute)
	for n := 0; n < indexes*perIndex; {
		if itr.Next() {
			want := Pos{testGeneration, n / perIndex, int64(n%perIndex) * 32}
			info := itr.WALSegment()
			if info.Pos() != want {
				t.Fatalf("segment %d is %s, want %s", n, info.Pos(), want)
			}
			n++
			continue
		}
		if err := itr.Err(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-itr.NotifyCh():
		case <-timeout:
			t.Fatalf("no notification after %d segments", n)
		}
	}
	wg.Wait()
	wantNext(t, itr)
	itr.SetErr(done)
	if itr.Next() || itr.Err() != done {
		t.Fatalf("err %v", itr.Err())
	}
}
