package litestream

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fakeapp"
	"example.com/litestream/internal/faultfs"
)

// A large transaction was seen by a capture before it was rolled back, whole or
// to a savepoint, and a shorter one is committed in its place. The stale frames
// behind that commit are still those that the capture saw.
//
// PITFALLS row 31
func TestCaptureFindsCommitBeforeStaleTail(t *testing.T) {
	const pageSize = 4096
	const mib = 1<<20/pageSize + 1
	for name, replace := range map[string]func(a *fakeapp.App) error{
		"other pages": func(a *fakeapp.App) error {
			a.Rollback()
			return a.Write(2*mib, 1, 2)
		},
		"the same pages, but fewer": func(a *fakeapp.App) error {
			a.Rollback()
			return a.Write(2*mib, 1, 1)
		},
		"savepoint": func(a *fakeapp.App) error {
			a.RollbackTo(2 * mib)
			return nil
		},
		"rewritten in place": func(a *fakeapp.App) error { return a.Rewrite(2*mib, 7) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newCaptureRig(t, pageSize, 1)
			if err := r.app.Commit(1, 1); err != nil {
				t.Fatal(err)
			}
			r.mustCapture(t)
			if err := r.app.Write(5*mib, 1, 1); err != nil {
				t.Fatal(err)
			}
			if got := r.mustCapture(t); got.segments != 0 {
				t.Fatalf("captured %d segments of an open transaction", got.segments)
			}
			if err := errors.Join(replace(r.app), r.app.Commit(1, 2)); err != nil {
				t.Fatal(err)
			}
			r.mustCapture(t)
			if err := r.compare(0, len(r.app.Committed(0))); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// onRead calls fn before the nth read of the WAL.
func (r *captureRig) onRead(n int, fn func() error) {
	r.fs.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Read && strings.HasSuffix(op.Path, "-wal") {
			if n--; n == 0 {
				return fn()
			}
		}
		return nil
	})
}

// commit commits n+1 pages.
func (r *captureRig) commit(t testing.TB, n int) {
	t.Helper()
	if err := errors.Join(r.app.Write(n, 1, 1), r.app.Commit(1, 1)); err != nil {
		t.Fatal(err)
	}
}

// A WAL that restarts under the pin between the reads of a capture is the next
// index, not one whose last frame was overwritten.
//
// PITFALLS row 6
func TestCaptureRestartBetweenReads(t *testing.T) {
	for n := 1; n <= 3; n++ {
		r := newCaptureRig(t, 512, 1)
		r.commit(t, 3)
		r.mustCapture(t)
		r.onRead(n, func() error {
			r.app.Restart()
			return errors.Join(r.app.Write(9, 1, 1), r.app.Commit(1, 1))
		})
		first := r.mustCapture(t)
		r.fs.SetHook(nil)
		second := r.mustCapture(t)
		if first.generation != "" || second.generation != "" || first.restarts+second.restarts != 1 {
			t.Errorf("read %d: %+v, then %+v, want one restart", n, first, second)
		}
		if err := r.compare(1, len(r.app.Committed(1))); err != nil {
			t.Errorf("read %d: %v", n, err)
		}
	}
}

// The first pin of a process holds a WAL that was backfilled elsewhere with
// read mark 0. If it restarts while the first capture reads it, its rest was
// never seen: that must not pass for the next index.
//
// PITFALLS rows 5 and 6
func TestFirstCaptureRestartBetweenReads(t *testing.T) {
	for n := 1; n <= 4; n++ {
		r := newCaptureRig(t, 512, 1)
		r.commit(t, 3)
		r.mustCapture(t)
		r.commit(t, 3) // while the library was not running
		if err := r.capt.resume(); err != nil {
			t.Fatal(err)
		}
		if r.capt.pos.IsZero() {
			t.Fatalf("not resumed: %s", r.capt.reason)
		}
		old := len(r.app.Committed(0))
		restarted := false
		r.onRead(n, func() error {
			restarted = true
			r.app.Restart()
			return errors.Join(r.app.Write(9, 1, 1), r.app.Commit(1, 1))
		})
		got, err := r.capture()
		r.fs.SetHook(nil)
		if err != nil && !errors.Is(err, errWALChanged) {
			t.Fatal(err)
		}
		if !restarted {
			continue
		}
		missed := int(r.capt.pos.Offset) < old && r.capt.pos.Index == 0
		next := r.mustCapture(t)
		if got.generation == "" && next.generation == "" && missed {
			t.Errorf("read %d: the wal's end was missed, but the generation goes on", n)
		}
		if err := r.compare(1, len(r.app.Committed(1))); err != nil {
			t.Errorf("read %d: %v", n, err)
		}
	}
}

// A new generation that begins while the WAL restarts would hold a part of the
// old WAL, which a restore would replay over newer pages.
func TestNewGenerationRestartBetweenReads(t *testing.T) {
	r := newCaptureRig(t, 512, 1)
	r.commit(t, 3)
	r.onRead(2, func() error {
		r.app.Restart()
		return errors.Join(r.app.Write(1, 1, 1), r.app.Commit(1, 1))
	})
	if got, err := r.capture(); !errors.Is(err, errWALChanged) {
		t.Fatalf("got %+v, %v", got, err)
	}
	r.fs.SetHook(nil)
	if got := r.mustCapture(t); got.generation == "" {
		t.Fatalf("got %+v, want a new generation", got)
	}
	if err := r.compare(1, len(r.app.Committed(1))); err != nil {
		t.Fatal(err)
	}
	ents, err := r.fs.ReadDir(r.capt.shadow.meta.generations())
	if err != nil || len(ents) != 1 {
		t.Fatalf("generations: %v, %v; want the current one alone", ents, err)
	}
}

// The frames of a large transaction are read twice. Should they change in
// between, nothing of them may be published.
func TestLargeCaptureVerifiesTheSecondRead(t *testing.T) {
	r := newCaptureRig(t, 4096, 1)
	r.commit(t, 1)
	r.mustCapture(t)
	r.commit(t, 600)
	pos := r.capt.pos
	r.fs.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Create { // the segment: the commit was found
			r.app.Restart()
			return errors.Join(r.app.Write(9, 1, 1), r.app.Commit(1, 1))
		}
		return nil
	})
	if _, err := r.capture(); !errors.Is(err, errWALChanged) {
		t.Fatalf("error %v, want errWALChanged", err)
	}
	if r.capt.pos != pos {
		t.Errorf("moved from %s to %s", pos, r.capt.pos)
	}
}

// Whichever operation fails, with whatever fault: the capture says so, what it
// published stays right, no unfinished file is left, and the next capture goes
// on behind it in the same generation.
//
// PITFALLS rows 12, 20 and 36
func TestCaptureGoesOnAfterAnyFault(t *testing.T) {
	for fault, truncate := range map[error]bool{faultfs.ENOSPC: false, faultfs.EIO: true, faultfs.ShortWrite: false} {
		t.Run(fault.Error(), func(t *testing.T) {
			step := 1
			if RaceEnabled {
				step = 5 // every fault point is run without the detector
			}
			for n := 1; testCaptureFault(t, n, fault, truncate); n += step {
			}
		})
	}
}

// testCaptureFault fails the nth operation, and reports whether there was one.
func testCaptureFault(t *testing.T, n int, fault error, truncate bool) (failed bool) {
	r := newCaptureRig(t, 4096, 1)
	var began []string
	capture := func() error {
		got, err := r.capture()
		if got.generation != "" {
			began = append(began, got.generation)
		}
		op, ok := r.fs.Fault()
		if ok && !failed {
			failed = true
			if !errors.Is(err, fault) && op.Path != r.capt.shadow.meta.generations() { // looking for old ones
				t.Errorf("%+v failed: capture returned %v", op, err)
			}
			err = nil
		}
		return err
	}
	check := func() {
		t.Helper()
		if err := errors.Join(capture(), capture()); err != nil {
			t.Fatalf("fault %d: %v", n, err)
		}
		if err := r.compare(r.app.Index(), len(r.app.Committed(r.app.Index()))); err != nil {
			t.Fatalf("fault %d: %v", n, err)
		}
	}
	r.fs.FailAt(n, fault)
	r.commit(t, 2)
	check()
	if truncate {
		r.capt.proof = truncated
		if err := r.app.Truncate(); err != nil {
			t.Fatal(err)
		}
	} else {
		r.app.Restart()
	}
	r.commit(t, 2)
	if truncate {
		r.commit(t, 260) // more than a chunk
	}
	check()
	if r.capt.proof != pinned {
		t.Errorf("fault %d: proof is %v after the capture of a restart", n, r.capt.proof)
	}
	if len(began) != 1 {
		t.Errorf("fault %d: %d generations begun: %q", n, len(began), began)
	}
	if err := filepath.WalkDir(string(r.capt.shadow.meta), func(path string, ent fs.DirEntry, err error) error {
		if atomicfile.IsTemp(path) {
			if op, _ := r.fs.Fault(); op.Name != faultfs.Remove {
				t.Errorf("fault %d: %s is left", n, path)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return failed
}

// A truncation of ours is used up by the restart that follows it, even if the
// capture that saw the restart failed later.
func TestCaptureUsesUpTruncation(t *testing.T) {
	r := newCaptureRig(t, 4096, 1)
	r.commit(t, 1)
	r.mustCapture(t)
	if err := r.app.Truncate(); err != nil {
		t.Fatal(err)
	}
	r.capt.proof = truncated
	r.commit(t, 1)
	r.commit(t, 600)
	created := 0
	r.fs.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Rename {
			if created++; created == 2 {
				return faultfs.EIO
			}
		}
		return nil
	})
	if got, err := r.capture(); err == nil || got.restarts != 1 {
		t.Fatalf("got %+v, %v; want one restart, then the fault", got, err)
	}
	r.fs.SetHook(nil)
	r.mustCapture(t)
	if err := r.app.Truncate(); err != nil { // not ours
		t.Fatal(err)
	}
	r.commit(t, 1)
	if got := r.mustCapture(t); got.generation != "wal restarted elsewhere" {
		t.Errorf("got %+v, want a new generation", got)
	}
}

// Why a generation begins is not forgotten when its beginning fails at first.
func TestReasonOfAGenerationOutlivesAFailure(t *testing.T) {
	r := newCaptureRig(t, 512, 1)
	if err := r.app.Commit(1, 1); err != nil {
		t.Fatal(err)
	}
	r.mustCapture(t)
	r.capt.forget("asked for")
	r.fs.FailOn(faultfs.Rename, faultfs.EIO)
	if _, err := r.capture(); !errors.Is(err, faultfs.EIO) {
		t.Fatalf("got %v", err)
	}
	r.fs.SetHook(nil)
	if got := r.mustCapture(t); got.generation != "asked for" {
		t.Fatalf("the generation began because of %q", got.generation)
	}
	if err := r.compare(r.app.Index(), len(r.app.Committed(r.app.Index()))); err != nil {
		t.Fatal(err)
	}
}

// How far a WAL is ahead of what is captured tells apart the frames of this WAL
// and those that an earlier one left behind.
func TestCaptureAhead(t *testing.T) {
	r := newCaptureRig(t, 512, 1)
	mustBeAhead := func(step string, n int64) {
		t.Helper()
		for _, test := range []struct {
			from, to int64
			want     bool
		}{{n, n + 1, true}, {n + 1, n + 2, false}, {0, n + 1, true}, {0, n, false}, {1, 1 << 40, n > 0}} {
			got, err := r.capt.ahead(test.from, test.to)
			if err != nil {
				t.Fatalf("%s: %v", step, err)
			}
			if got != test.want {
				t.Errorf("%s: between %d and %d frames ahead: %t, want %t", step, test.from, test.to, got, test.want)
			}
		}
	}
	r.commit(t, 9)
	mustBeAhead("nothing is captured", 10)
	r.mustCapture(t)
	mustBeAhead("all is captured", 0)
	r.commit(t, 3)
	mustBeAhead("one commit", 4)
	if err := r.app.Write(2, 1, 1); err != nil {
		t.Fatal(err)
	}
	mustBeAhead("an open transaction", 6)
	r.app.Rollback()
	r.commit(t, 0)
	r.mustCapture(t)
	r.app.Restart()
	r.commit(t, 2)
	mustBeAhead("restarted, with old frames behind", 3)
	r.mustCapture(t)
	mustBeAhead("captured, with old frames behind", 0)
	if err := r.compare(1, len(r.app.Committed(1))); err != nil {
		t.Fatal(err)
	}
}

// A writer as fast as the capture does not lead it on to the end of a WAL file
// that was once long.
func TestCaptureEndsWhereTheWALEndedWhenItBegan(t *testing.T) {
	const mib = 1<<20/4096 + 1
	r := newCaptureRig(t, 4096, 1)
	r.commit(t, 12*mib)
	r.mustCapture(t)
	r.app.Restart()
	r.commit(t, 2*mib)
	r.fs.SetHook(func(op faultfs.Op) error {
		if op.Name == faultfs.Create && strings.Contains(op.Path, ".wal.lz4") {
			return errors.Join(r.app.Write(mib, 1, 1), r.app.Commit(1, 1))
		}
		return nil
	})
	r.mustCapture(t)
	r.fs.SetHook(nil)
	frame := int64(WALFrameHeaderSize + 4096)
	if n := r.capt.cursor.offset / frame; n < 2*mib || n > 4*mib {
		t.Errorf("captured %d frames, of %d when it began and %d when it ended", n, 2*mib, r.app.CommittedFrames())
	}
	r.mustCapture(t)
	if err := r.compare(1, len(r.app.Committed(1))); err != nil {
		t.Fatal(err)
	}
}

// A capture ends where the WAL does when it begins.
func TestReach(t *testing.T) {
	const pageSize = 4096
	frame := WALFrameHeaderSize + pageSize
	cur := startWAL(newWALHeader(pageSize, 1, 1, false))
	stale := newWALHeader(pageSize, 0, 1, false)
	unit := firstChunk / frame
	for _, tt := range []struct{ frames, stale, want int }{
		{0, 0, 1},
		{1, 0, 1},
		{1, 1000, 1},
		{unit, 1000, 1},
		{unit + 1, 0, 2},
		{unit + 1, 1000, 2},
		{2 * unit, 1000, 2},
		{2*unit + 1, 1000, 3},
		{7 * unit, 1000, 7},
		{7*unit + 1, 1000, 8},
		{100*unit - 1, 3000, 100},
		{100 * unit, 3000, 100},
		{100*unit + 1, 3000, 101},
	} {
		wal := make([]byte, WALHeaderSize+(tt.frames+tt.stale)*frame)
		for i := range tt.frames + tt.stale {
			h := &cur.header
			if i >= tt.frames {
				h = &stale
			}
			copy(wal[WALHeaderSize+i*frame+8:], h.raw[16:24])
		}
		got, err := reach(bytes.NewReader(wal), cur, int64(len(wal)))
		if want := int64(tt.want * unit * frame); err != nil || got != want {
			t.Errorf("%d new frames, %d stale: %d bytes, error %v; want %d", tt.frames, tt.stale, got, err, want)
		}
	}
}
