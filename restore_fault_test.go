package litestream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/litestream/internal/fsys"
)

// restoreFaultSource has three indexes of several segments each and one
// snapshot.
func restoreFaultSource(t testing.TB) *restoreSource {
	s := newRestoreSource(t, 1024)
	s.insert(20, 300)
	s.exec("PRAGMA wal_checkpoint(RESTART)")
	s.insert(1, 1)
	s.snapshot()
	for range 3 {
		for range 3 {
			s.insert(4, 500)
			s.capture()
		}
		s.restart("RESTART")
	}
	s.insert(1, 1)
	s.capture()
	return s
}

// restoreMustFail restores a damaged replica and expects an error, the file
// named in it, and nothing left behind.
func restoreMustFail(t *testing.T, c *restoreMemClient, what, name string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored.db")
	_, err := RestoreLatest(context.Background(), c, path, restoreQuiet())
	if err == nil {
		t.Errorf("%s: restored without error", what)
		return nil
	}
	if !strings.Contains(err.Error(), name) {
		t.Errorf("%s: error does not name %s: %v", what, name, err)
	}
	if errors.Is(err, ErrNoGeneration) || errors.Is(err, ErrNoSnapshots) {
		t.Errorf("%s: error says that the replica is empty: %v", what, err)
	}
	restoreOnly(t, path)
	if c.open != 0 {
		t.Errorf("%s: %d readers left open", what, c.open)
	}
	return err
}

// PITFALLS row 14
func TestRestore_EveryFlippedByteIsAnError(t *testing.T) {
	s := restoreFaultSource(t)
	want := s.want()
	damage := func(name string, data []byte, put func(c *restoreMemClient, b []byte)) {
		for range 12 {
			i, bit := rand.IntN(len(data)), byte(1)<<rand.IntN(8)
			b := bytes.Clone(data)
			b[i] ^= bit
			if got, err := decompressFrame(b); err == nil {
				if orig, _ := decompressFrame(data); bytes.Equal(got, orig) {
					continue // the same content in another form
				}
			}
			c := s.client.clone()
			put(c, b)
			err := restoreMustFail(t, c, fmt.Sprintf("%s: bit %#x of byte %d flipped", name, bit, i), name)
			var sum *ChecksumError
			if err != nil && (!errors.As(err, &sum) || sum.Path != name || !errors.Is(err, ErrChecksumMismatch)) {
				t.Errorf("%s: byte %d: not a ChecksumError that names it: %v", name, i, err)
			}
		}
		for _, n := range []int{0, 1, 3, 6, 7, len(data) / 2, len(data) - 5, len(data) - 4, len(data) - 1} {
			c := s.client.clone()
			put(c, data[:n])
			err := restoreMustFail(t, c, fmt.Sprintf("%s: cut to %d bytes", name, n), name)
			if !errors.Is(err, ErrChecksumMismatch) {
				t.Errorf("%s: cut to %d bytes: %v", name, n, err)
			}
		}
	}
	for pos, f := range s.client.segments {
		damage(segmentName(pos), f.data, func(c *restoreMemClient, b []byte) { c.putSegment(pos, b) })
	}
	for pos, f := range s.client.snapshots {
		damage(snapshotName(pos.Generation, pos.Index), f.data, func(c *restoreMemClient, b []byte) {
			c.snapshots[pos] = restoreMemFile{b, f.at}
		})
	}
	restoreWant(t, want, func(path string) error { // the clones were damaged, not the source
		_, err := RestoreLatest(context.Background(), s.client, path, restoreQuiet())
		return err
	})
}

// A flip that LZ4 does not see, since the segment was compressed again, is
// still seen by the WAL's own checksums. PITFALLS row 14
func TestRestore_EveryFlippedWALByteIsAnError(t *testing.T) {
	s := restoreFaultSource(t)
	for pos, f := range s.client.segments {
		data, err := decompressFrame(f.data)
		if err != nil {
			t.Fatal(err)
		}
		places := []int{rand.IntN(len(data)), len(data) - 1, len(data) - 1024 - WALFrameHeaderSize}
		if pos.Offset == 0 {
			places = append(places, 0, 8, 16, 24, 31)
		} else {
			places = append(places, 0, 4, 8, 12, 16, 20, 24)
		}
		for _, i := range places {
			b := bytes.Clone(data)
			b[i] ^= 1
			c := s.client.clone()
			c.putSegment(pos, compressSegment(t, b))
			err := restoreMustFail(t, c, fmt.Sprintf("byte %d of %d", i, len(b)), segmentName(pos))
			if !errors.Is(err, ErrChecksumMismatch) {
				t.Errorf("byte %d: %v", i, err)
			}
		}
		// Ends inside a frame, between frames of one transaction, with rubbish.
		for what, b := range map[string][]byte{
			"inside a frame": data[:len(data)-100],
			"rubbish":        append(bytes.Clone(data), 1, 2, 3),
			"zero frame":     append(bytes.Clone(data), make([]byte, 1024+WALFrameHeaderSize)...),
		} {
			c := s.client.clone()
			c.putSegment(pos, compressSegment(t, b))
			restoreMustFail(t, c, what, segmentName(pos))
		}
	}
}

// PITFALLS row 14
func TestRestore_SegmentThatEndsInsideATransactionIsAnError(t *testing.T) {
	s := newRestoreSource(t, 512)
	s.snapshot()
	s.insert(10, 400) // several frames, one commit
	start := s.pos
	s.capture()
	data, err := decompressFrame(s.client.segments[start].data)
	if err != nil {
		t.Fatal(err)
	}
	frame := 512 + WALFrameHeaderSize
	s.client.putSegment(start, compressSegment(t, data[:len(data)-frame]))
	if err := restoreMustFail(t, s.client, "without its commit frame", segmentName(start)); !errors.Is(err, ErrChecksumMismatch) {
		t.Error(err)
	}
}

// What cannot be seen, by the format, is that the last segments of an index are
// missing. PITFALLS row 14
func TestRestore_MissingDoubledAndSwappedSegmentsAreErrors(t *testing.T) {
	s := restoreFaultSource(t)
	var all []Pos
	for pos := range s.client.segments {
		all = append(all, pos)
	}
	slices.SortFunc(all, Pos.compare)
	last := func(i int) bool { return i == len(all)-1 || all[i+1].Index != all[i].Index }
	for i, pos := range all {
		if !last(i) || pos.Offset == 0 && i < len(all)-1 {
			c := s.client.clone()
			delete(c.segments, pos)
			restoreMustFail(t, c, "dropped "+segmentName(pos), segmentName(pos))
		}
		for j, other := range all {
			if i == j {
				continue
			}
			c := s.client.clone()
			c.segments[pos] = s.client.segments[other]
			restoreMustFail(t, c, fmt.Sprintf("copy of %v at %v", other, pos), "/wal/"+FormatIndex(pos.Index)+"/")
			c.segments[other] = s.client.segments[pos]
			restoreMustFail(t, c, fmt.Sprintf("%v and %v swapped", other, pos), "/wal/")
		}
		// A copy under another offset: an overlap.
		c := s.client.clone()
		extra := pos
		extra.Offset += 100
		c.segments[extra] = s.client.segments[pos]
		restoreMustFail(t, c, "overlap", "/wal/"+FormatIndex(pos.Index)+"/")
	}
	// A whole index.
	for _, index := range []int{0, 1, 2} {
		c := s.client.clone()
		for _, pos := range all {
			if pos.Index == index {
				delete(c.segments, pos)
			}
		}
		err := restoreMustFail(t, c, "index dropped", FormatIndex(index))
		var missing *WALNotFoundError
		if !errors.As(err, &missing) || missing.Index != index {
			t.Errorf("index %d dropped: %v", index, err)
		}
	}
}

// PITFALLS row 14
func TestRestore_SnapshotThatIsNoDatabaseIsAnError(t *testing.T) {
	s := restoreFaultSource(t)
	var pos Pos
	for pos = range s.client.snapshots {
	}
	name := snapshotName(pos.Generation, pos.Index)
	db, err := decompressFrame(s.client.snapshots[pos].data)
	if err != nil {
		t.Fatal(err)
	}
	otherPageSize := bytes.Clone(db)
	otherPageSize[16], otherPageSize[17] = 2, 0
	badPageSize := bytes.Clone(db)
	badPageSize[16], badPageSize[17] = 3, 3
	badMagic := bytes.Clone(db)
	badMagic[3] = 'X'
	for what, b := range map[string][]byte{
		"half a page":                       db[:len(db)-100],
		"short":                             db[:50],
		"magic":                             badMagic,
		"page size 771":                     badPageSize,
		"a page less, which no segment has": db[:4*1024],
	} {
		c := s.client.clone()
		for p := range c.segments {
			if what == "a page less, which no segment has" && p.Index > 0 {
				delete(c.segments, p)
			}
		}
		c.putSnapshot(pos.Generation, pos.Index, compressSegment(t, b))
		if err := restoreMustFail(t, c, what, name); !errors.Is(err, ErrChecksumMismatch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c := s.client.clone()
	c.putSnapshot(pos.Generation, pos.Index, compressSegment(t, otherPageSize))
	restoreMustFail(t, c, "page size of 512 beside a wal of 1024", "generations/")
}

// PITFALLS row 26
func TestRestore_PlansAgainWhenRetentionRunsMeanwhile(t *testing.T) {
	s := restoreFaultSource(t)
	s.restart("RESTART")
	s.insert(3, 100)
	want := s.want()

	// The snapshot and its segments go, a newer snapshot takes over.
	c := s.client
	first := true
	c.onRead = func(string) error {
		if !first {
			return nil
		}
		first = false
		s.snapshot()
		c.mu.Lock()
		defer c.mu.Unlock()
		for pos := range c.snapshots {
			if pos.Index < s.pos.Index {
				delete(c.snapshots, pos)
			}
		}
		for pos := range c.segments {
			if pos.Index < s.pos.Index {
				delete(c.segments, pos)
			}
		}
		return nil
	}
	opt := restoreQuiet()
	opt.Parallelism = 1
	restoreWant(t, want, func(path string) error {
		_, err := RestoreLatest(context.Background(), c, path, opt)
		return err
	})

	// A file that is listed and never there ends the attempts.
	var opens atomic.Int32
	name := snapshotName(s.generation, s.pos.Index)
	c.onRead = func(n string) error {
		if n == name {
			opens.Add(1)
			return fs.ErrNotExist
		}
		return nil
	}
	err := restoreMustFail(t, c, "never there", name)
	if !errors.Is(err, fs.ErrNotExist) || opens.Load() != restoreAttempts {
		t.Errorf("%d attempts, want %d: %v", opens.Load(), restoreAttempts, err)
	}
}

// A client that fails is not an empty replica, and not damage.
func TestRestore_ClientErrorsArePassedOn(t *testing.T) {
	s := restoreFaultSource(t)
	broken := errors.New("connection lost")
	var names []string
	s.client.onRead = func(name string) error { names = append(names, name); return nil }
	opt := restoreQuiet()
	opt.Parallelism = 1
	restoreWant(t, s.want(), func(path string) error {
		_, err := RestoreLatest(context.Background(), s.client, path, opt)
		return err
	})
	for _, name := range names {
		c := s.client.clone()
		c.onRead = func(n string) error {
			if n == name {
				return broken
			}
			return nil
		}
		err := restoreMustFail(t, c, "open fails", name)
		if !errors.Is(err, broken) || errors.Is(err, ErrChecksumMismatch) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// restoreBrokenBody fails after some bytes.
type restoreBrokenBody struct {
	io.ReadCloser
	left int
	err  error
}

func (r *restoreBrokenBody) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, r.err
	}
	n, err := r.ReadCloser.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

// A connection that breaks is not damage of the replica; a body that just ends
// early is. PITFALLS row 27
func TestRestore_BrokenAndShortBodies(t *testing.T) {
	s := newRestoreSource(t, 4096)
	s.insert(300, 3000)
	s.restart("TRUNCATE")
	s.snapshot()
	s.insert(300, 3000)
	s.capture()
	segment := Pos{Generation: s.generation, Index: 1}
	for name, size := range map[string]int{
		snapshotName(s.generation, 1): len(s.client.snapshots[segment].data),
		segmentName(segment):          len(s.client.segments[segment].data),
	} {
		if size < 2*readAheadSize {
			t.Fatalf("%s has only %d bytes", name, size)
		}
		for _, n := range []int{0, 1, 1000, readAheadSize - 1, readAheadSize, readAheadSize + 1, size - 1, size} {
			for _, broken := range []error{errors.New("connection lost"), io.ErrUnexpectedEOF, io.EOF} {
				if broken == io.EOF && n == size {
					continue
				}
				c := s.client.clone()
				c.onBody = func(n2 string, r io.ReadCloser) io.ReadCloser {
					if n2 != name {
						return r
					}
					return &restoreBrokenBody{r, n, broken}
				}
				path := filepath.Join(t.TempDir(), "restored.db")
				_, err := RestoreLatest(context.Background(), c, path, restoreQuiet())
				if n == size && err == nil {
					continue // the end mark was read before
				}
				if err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("%s: %v after %d bytes: %v", name, broken, n, err)
				}
				if damage := errors.Is(err, ErrChecksumMismatch); damage != (broken == io.EOF) || !damage && !errors.Is(err, broken) {
					t.Errorf("%s: %v after %d bytes counts as damage: %t: %v", name, broken, n, damage, err)
				}
				restoreOnly(t, path)
			}
		}
	}
}

// A segment under a wrong offset breaks the tiling, even if its bytes fit.
func TestRestore_RelabelledSegmentIsAnError(t *testing.T) {
	s := restoreFaultSource(t)
	for pos := range s.client.segments {
		if pos.Offset == 0 {
			continue
		}
		for _, d := range []int64{-1, 1} {
			c := s.client.clone()
			wrong := pos
			wrong.Offset += d
			c.segments[wrong] = c.segments[pos]
			delete(c.segments, pos)
			restoreMustFail(t, c, "relabelled", segmentName(wrong))
		}
	}
}

// Retention between the listing of snapshots and that of segments makes a
// sound replica look broken. PITFALLS row 26
func TestPlanRestore_ListsAgainWhenRetentionRunsMeanwhile(t *testing.T) {
	s := restoreFaultSource(t)
	c := s.client
	lists := 0
	c.onList = func() {
		if lists++; lists > 1 {
			return
		}
		c.onList = nil
		s.snapshot()
		c.onList = func() { lists++ }
		c.mu.Lock()
		defer c.mu.Unlock()
		for pos := range c.snapshots {
			if pos.Index < s.pos.Index {
				delete(c.snapshots, pos)
			}
		}
		for pos := range c.segments {
			if pos.Index < s.pos.Index {
				delete(c.segments, pos)
			}
		}
	}
	plan, err := PlanRestore(context.Background(), c, time.Time{})
	if err != nil || plan.Snapshot.Index != s.pos.Index || lists != 2 {
		t.Errorf("plan %v after %d listings, %v", plan, lists, err)
	}
}

// A few KB that decompress to a GB must not take the memory of one.
func TestRestore_DecompressionBombIsBounded(t *testing.T) {
	s := restoreFaultSource(t)
	var bomb bytes.Buffer
	zw := newSegmentWriter(&bomb)
	block := make([]byte, 1<<20)
	copy(block, "SQLite format 3\x00\x02\x00")
	for range 512 {
		if _, err := zw.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	releaseSegmentWriter(zw)

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for pos := range s.client.segments {
		c := s.client.clone()
		c.fast = true
		c.putSegment(pos, bomb.Bytes())
		restoreMustFail(t, c, "bomb", "generations/")
		if RaceEnabled {
			break // one will do
		}
	}
	c := s.client.clone()
	c.fast = true
	c.putSnapshot(s.generation, 0, bomb.Bytes())
	restoreMustFail(t, c, "bomb", "generations/")
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 256<<20 {
		t.Errorf("allocated %d MiB", n>>20)
	}
}

// What an index took of the memory limit comes back with it, and an index
// beyond the limit goes through a file that is gone afterwards.
func TestWALImage_MemoryIsBoundedAndReturned(t *testing.T) {
	s := newRestoreSource(t, 4096)
	s.insert(700, 3000)
	s.capture()
	segments, err := listWALSegments(context.Background(), s.client, s.generation)
	if err != nil {
		t.Fatal(err)
	}
	const limit = 2 * walWindowSize
	for _, wantFile := range []bool{false, true} {
		var memory atomic.Int64
		memory.Store(64 << 20)
		if wantFile {
			memory.Store(limit)
		}
		before := memory.Load()
		scratch := filepath.Join(t.TempDir(), "scratch.tmp")
		m := newWALImage("x", fsys.OS, scratch, &memory)
		if err := m.load(context.Background(), newFetcher(s.client, 2, nil), segments); err != nil {
			t.Fatal(err)
		}
		if wantFile && (cap(m.window) > walWindowSize+limit || m.base == 0) {
			t.Errorf("window of %d bytes, %d in the file", cap(m.window), m.base)
		}
		if _, err := os.Stat(scratch); (err == nil) != wantFile {
			t.Errorf("scratch file: %v", err)
		}
		for range 2 {
			if err := m.release(); err != nil {
				t.Fatal(err)
			}
		}
		if memory.Load() != before {
			t.Errorf("%d bytes of memory left, %d before", memory.Load(), before)
		}
		restoreOnly(t, scratch)
	}
}

// PITFALLS row 39
func TestRestore_SparseDatabaseAcrossTheLockPage(t *testing.T) {
	if RaceEnabled {
		t.Skip("1 GiB takes half a minute under the race detector; it runs without")
	}
	const pageSize = 65536
	const lockPage = lockPageOffset/pageSize + 1
	s := newRestoreSource(t, pageSize)
	s.snapshot()
	s.capture()
	base := s.pos

	// Two pages beyond 1 GiB: the WAL holds all but the lock page; to be
	// quick, the snapshot is a sparse file that ends just before it.
	wal, err := os.ReadFile(s.path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseWALHeader(wal)
	if err != nil {
		t.Fatal(err)
	}
	scan := newWALScan(startWAL(h))
	scan.feed(wal[WALHeaderSize:])
	cursor := scan.commit
	var seg []byte
	for _, pgno := range []uint32{lockPage + 1, lockPage + 2} {
		seg = restoreAppendFrame(seg, &cursor, pgno, lockPage+2, bytes.Repeat([]byte{byte(pgno)}, pageSize))
	}
	s.client.putSegment(base, compressSegment(t, seg))
	db, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	zw := newSegmentWriter(&z)
	if _, err := zw.Write(append(db, make([]byte, 16*pageSize-len(db))...)); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 16*pageSize)
	for range (lockPage-1)/16 - 1 {
		if _, err := zw.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	releaseSegmentWriter(zw)
	s.client.putSnapshot(s.generation, 0, z.Bytes())
	s.client.fast = true

	path := filepath.Join(t.TempDir(), "restored.db")
	if _, err := RestoreLatest(context.Background(), s.client, path, restoreQuiet()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != (lockPage+2)*pageSize {
		t.Fatalf("size %d, %v", info.Size(), err)
	}
	got := make([]byte, 3*pageSize)
	if _, err := f.ReadAt(got, lockPageOffset); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for i, want := range []uint32{0, lockPage + 1, lockPage + 2} {
		if !bytes.Equal(got[i*pageSize:][:pageSize], bytes.Repeat([]byte{byte(want)}, pageSize)) {
			t.Errorf("page %d is wrong", lockPage+i)
		}
	}
}
