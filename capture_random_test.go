package litestream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"example.com/litestream/internal/fakeapp"
	"example.com/litestream/internal/faultfs"
	"example.com/litestream/internal/fsys"
	"example.com/litestream/internal/walcheck"
)

// captureRig is a capturer beside a fake application.
type captureRig struct {
	app  *fakeapp.App
	fs   *faultfs.FS
	capt *capturer
	seen map[int]int // bytes of each index that were compared
	base int         // the application's index that the generation began with
}

func newCaptureRig(t testing.TB, pageSize int, seed uint64) *captureRig {
	t.Helper()
	dir := t.TempDir()
	app, err := fakeapp.New(filepath.Join(dir, "db-wal"), pageSize, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := app.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &captureRig{app: app, fs: faultfs.New(fsys.OS)}
	r.capt = &capturer{
		fs: r.fs, walPath: filepath.Join(dir, "db-wal"), proof: pinned,
		shadow:   newShadowWAL(r.fs, metaDir(filepath.Join(dir, "db-litestream"))),
		database: app.Backfilled(),
	}
	return r
}

// capture captures, and notices a new generation.
func (r *captureRig) capture() (captured, error) {
	index := r.app.Index()
	got, err := r.capt.capture()
	if got.generation != "" {
		r.seen, r.base = make(map[int]int), index
		if wal := r.app.Committed(r.app.Index()); len(wal) > 0 && r.capt.cursor.header.raw == [WALHeaderSize]byte(wal) {
			r.base = r.app.Index()
		}
	}
	return got, err
}

func (r *captureRig) mustCapture(t testing.TB) captured {
	t.Helper()
	got, err := r.capture()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// compare checks that the shadow WAL is what the application committed, at
// least up to the place that it had reached: index, and bytes of it.
func (r *captureRig) compare(index, size int) error {
	pos := r.capt.pos
	if pos.IsZero() {
		return nil
	}
	for _, n := range r.capt.shadow.indexNumbers(pos.Generation) {
		want := r.app.Committed(r.base + n)
		segments, err := r.capt.shadow.segments(pos.Generation, n)
		if err != nil {
			return err
		}
		for _, seg := range segments {
			if int(seg.end) <= r.seen[n] {
				continue
			}
			if int(seg.offset) != r.seen[n] {
				return fmt.Errorf("index %d: segment at %d, the one before ended at %d", n, seg.offset, r.seen[n])
			}
			rc, err := newShadowWAL(fsys.OS, r.capt.shadow.meta).open(Pos{pos.Generation, n, seg.offset})
			if err != nil {
				return err
			}
			zr := newFrameReader(rc)
			got, err := io.ReadAll(zr)
			if err := errors.Join(err, zr.Close()); err != nil {
				return err
			}
			if int64(len(got)) != seg.end-seg.offset {
				return fmt.Errorf("index %d: segment at %d holds %d bytes, not those up to %d", n, seg.offset, len(got), seg.end)
			}
			if int(seg.end) > len(want) || !bytes.Equal(got, want[seg.offset:seg.end]) {
				return fmt.Errorf("index %d: bytes [%d, %d) are not those that were committed, up to %d", n, seg.offset, seg.end, len(want))
			}
			r.seen[n] = int(seg.end)
		}
		if r.base+n < r.app.Index() && n < pos.Index && r.seen[n] != len(want) {
			return fmt.Errorf("index %d: ends at %d, the wal at %d", n, r.seen[n], len(want))
		}
	}
	switch {
	case size <= WALHeaderSize && r.base+pos.Index >= index-1: // nothing committed in it
	case r.base+pos.Index < index, r.base+pos.Index == index && int(pos.Offset) < size:
		return fmt.Errorf("captured up to %d:%d, committed were %d:%d", r.base+pos.Index, pos.Offset, index, size)
	}
	return nil
}

// database replays the shadow WAL.
func (r *captureRig) database(t testing.TB) []byte {
	t.Helper()
	var db []byte
	pos := r.capt.pos
	for _, n := range r.capt.shadow.indexNumbers(pos.Generation) {
		segments, err := r.capt.shadow.segments(pos.Generation, n)
		if err != nil {
			t.Fatal(err)
		}
		zr := newFrameReader(joinSegments(r.capt.shadow.sources(Pos{Generation: pos.Generation, Index: n}, segments)))
		b, err := io.ReadAll(zr)
		if err := errors.Join(err, zr.Close()); err != nil {
			t.Fatal(err)
		}
		if err := walcheck.WAL(b); err != nil {
			t.Fatalf("index %d: %v", n, err)
		}
		for b = b[WALHeaderSize:]; len(b) > 0; b = b[WALFrameHeaderSize+r.app.PageSize:] {
			end := int(binary.BigEndian.Uint32(b)) * r.app.PageSize
			if end > len(db) {
				db = append(db, make([]byte, end-len(db))...)
			}
			copy(db[end-r.app.PageSize:], b[WALFrameHeaderSize:WALFrameHeaderSize+r.app.PageSize])
		}
	}
	return db
}

// step lets the application do something at random. Restarts need that
// everything was captured: that is what the keeper sees to.
func (r *captureRig) step(rng *rand.Rand, between bool) error {
	a := r.app
	restartable := a.CommittedFrames() > 0 && r.capt.pos.Index+r.base == a.Index() &&
		int(r.capt.pos.Offset) == len(a.Committed(a.Index())) && r.capt.proof == pinned
	mib := (1<<20)/a.PageSize + 1
	version := uint64(rng.IntN(2)) // few, so that a transaction tried again writes the same again
	if restartable && rng.IntN(6) == 0 {
		if between || rng.IntN(3) != 0 {
			a.Restart()
			return nil
		}
		r.capt.proof = truncated // only the library truncates, between its captures
		return a.Truncate()
	}
	switch p := rng.IntN(1000); {
	case p < 500:
		return errors.Join(a.Write(rng.IntN(4), 1+uint32(rng.IntN(50)), version), a.Commit(1+uint32(rng.IntN(50)), rng.Uint64()))
	case p < 620:
		return a.Write(1+rng.IntN(8), 1+uint32(a.TailFrames()), version)
	case p < 650:
		return a.Write(1+rng.IntN(mib), 1+uint32(a.TailFrames()), version)
	case p < 656:
		return a.Write(rng.IntN(4*mib), 1+uint32(a.TailFrames()), version)
	case p < 780:
		return a.Commit(1+uint32(a.TailFrames()), version)
	case p < 830:
		a.Rollback()
	case p < 860 && a.TailFrames() > 0:
		a.RollbackTo(rng.IntN(a.TailFrames()))
	case p < 890 && a.TailFrames() > 0:
		return a.Rewrite(rng.IntN(a.TailFrames()), rng.Uint64())
	case p < 930:
		return a.Tear(rng.IntN(WALFrameHeaderSize + a.PageSize))
	case p < 940:
		return a.TearHeader(rng.IntN(WALHeaderSize))
	}
	return nil
}

var pageSizes = []int{512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}

// Whatever an application does to its WAL, before and while it is read, and
// whatever read or write fails: the shadow WAL holds what was committed before
// the capture, and only what was committed, and goes on after an error.
//
// PITFALLS rows 12, 31 and 36
func TestCaptureIsTheCommittedPrefix(t *testing.T) {
	steps := 300
	if testing.Short() || RaceEnabled {
		steps = 100
	}
	for i, pageSize := range pageSizes {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("page size %d (%d), seed %d", pageSize, i, seed)
				}
			}()
			testCaptureRandom(t, pageSize, seed, steps)
		})
	}
}

func testCaptureRandom(t *testing.T, pageSize int, seed uint64, steps int) {
	rng := rand.New(rand.NewPCG(seed, 2))
	r := newCaptureRig(t, pageSize, seed)
	var stats struct{ restarts, segments, faults, between int }
	for n := range steps {
		if err := r.step(rng, false); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(3) != 0 {
			continue
		}
		index := r.app.Index()
		size := len(r.app.Committed(index))
		mode := rng.IntN(4)
		r.fs.SetHook(func(op faultfs.Op) error {
			switch {
			case mode == 1 && op.Name == faultfs.Read && rng.IntN(3) == 0:
				for range 1 + rng.IntN(3) {
					stats.between++
					if err := r.step(rng, true); err != nil {
						return err
					}
				}
			case mode == 2 && rng.IntN(20) == 0:
				stats.faults++
				return []error{faultfs.ENOSPC, faultfs.EIO, faultfs.ShortWrite}[rng.IntN(3)]
			}
			return nil
		})
		got, err := r.capture()
		r.fs.SetHook(nil)
		if err != nil && mode != 2 && !errors.Is(err, errWALChanged) {
			t.Fatalf("step %d: %v", n, err)
		}
		if got.generation != "" && got.generation != "first start" {
			t.Fatalf("step %d: a new generation for no reason: %s", n, got.generation)
		}
		stats.restarts += got.restarts
		stats.segments += got.segments
		if err != nil {
			index, size = r.base, 0
		}
		if err := r.compare(index, size); err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
	}
	r.app.Rollback()
	r.mustCapture(t)
	if err := r.compare(r.app.Index(), len(r.app.Committed(r.app.Index()))); err != nil {
		t.Fatal(err)
	}
	if r.base == 0 && !bytes.Equal(r.database(t), r.app.Database()) {
		t.Fatal("the replayed shadow WAL is not the application's database")
	}
	if !testing.Short() && !RaceEnabled && (stats.restarts == 0 || stats.segments == 0 || stats.faults == 0 || stats.between == 0) {
		t.Errorf("the run did not cover everything: %+v", stats)
	}
}
