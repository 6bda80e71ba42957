package litestream

import (
	"errors"
	"math/rand/v2"
	"os"

	"example.com/litestream/internal/fakeapp"
)

// simHost is the application of a simulation: it obeys SQLite's locks, as
// walModel has them, and writes real bytes into the WAL and the database file.
type simHost struct {
	walModel
	app     *fakeapp.App
	file    *os.File   // the database
	txn     *modelConn // of the open transaction
	readers []*modelConn
	failed  error // of a write to a file
	done    int   // commits
	durable int   // frames of the current WAL that a checkpoint synced
	losses  uint64

	truncates int // by the host: they draw random salts
}

func newSimHost(app *fakeapp.App, file *os.File, rng *rand.Rand) *simHost {
	h := &simHost{app: app, file: file}
	h.readers = []*modelConn{{m: &h.walModel}, {m: &h.walModel}}
	h.walModel.readers, h.walModel.rng, h.walModel.quiet, h.walModel.disk = make(map[*modelConn]int), rng, true, h
	h.txn = &modelConn{m: &h.walModel}
	h.fault = func(string) error { return nil }
	h.write(h.app.Create(), 0)
	return h
}

func (h *simHost) check(err error) { h.failed = errors.Join(h.failed, err) }

func (h *simHost) write(page []byte, off int64) {
	_, err := h.file.WriteAt(page, off)
	h.check(err)
}

// restarted implements walDisk.
func (h *simHost) restarted(truncated bool) {
	h.durable = 0
	if !truncated {
		h.app.Restart()
		return
	}
	h.check(h.app.Truncate())
}

// backfill implements walDisk as SQLite does: no page behind the end of the
// newest commit, and the file is cut when all is in it.
func (h *simHost) backfill(from, to int) {
	h.durable = h.mxFrame
	size := h.app.Size()
	h.check(h.app.EachFrame(from, to, func(pgno uint32, page []byte) error {
		if pgno <= size {
			h.write(page, int64(pgno-1)*int64(h.app.PageSize))
		}
		return nil
	}))
	if to == h.mxFrame {
		h.check(h.file.Truncate(int64(size) * int64(h.app.PageSize)))
	}
}

// begin takes the write lock for the host, and restarts the WAL if it can.
func (h *simHost) begin() bool {
	if h.writer == h.txn {
		return true
	}
	if h.writer != nil {
		return false // the library has it
	}
	if some, _ := h.marksHeld(); h.mxFrame > 0 && h.backfilled == h.mxFrame && !some {
		h.restart(false)
	}
	if h.mxFrame*h.app.PageSize > simMaxWAL {
		return false // it waits for a checkpoint
	}
	h.beginRead(h.txn)
	h.writer = h.txn
	return true
}

func (h *simHost) commit() {
	if !h.begin() {
		return
	}
	version := 1 + h.rng.Uint64N(1<<40)
	size, cut := h.app.PendingSize(), uint32(0)
	if size > 3 && h.rng.IntN(8) == 0 {
		cut = 2 + h.rng.Uint32N(size-2)
		size = cut
	}
	page := 1 + h.rng.Uint32N(size)
	if cut == 0 {
		page = h.page(size)
	}
	h.check(h.app.CommitSize(page, version, cut))
	h.mxFrame = h.app.CommittedFrames()
	h.txn.end()
	h.done++
}

// page draws one of the database, or the next one behind its end.
func (h *simHost) page(size uint32) uint32 {
	if size < simMaxPages && h.rng.IntN(4) == 0 {
		return size + 1
	}
	return 1 + h.rng.Uint32N(size)
}

// simMaxWAL is how far, in bytes, a simulated WAL grows: the files are in memory.
const simMaxWAL = 8 << 20

// simMaxPages is how far a simulated database grows.
const simMaxPages = 40

// spill writes n frames into the open transaction. Few versions make one that
// is tried again write the same, but not what a power loss took: commits that it
// left behind that would be valid again, and captured as unpublished ones are.
func (h *simHost) spill(n int) {
	if !h.begin() {
		return
	}
	for range n {
		h.check(h.app.Write(1, h.page(h.app.PendingSize()), 1+2*h.losses+uint64(h.rng.IntN(2))))
	}
}

func (h *simHost) rollback() {
	if h.writer == h.txn {
		h.app.Rollback()
		h.txn.end()
	}
}

// finish ends the open transaction: the library waits for the write lock.
func (h *simHost) finish() {
	if h.writer != h.txn {
		return
	}
	if h.rng.IntN(3) == 0 {
		h.rollback()
	} else {
		h.commit()
	}
}

// act does one thing that the host may do at any moment.
func (h *simHost) act() {
	rng, a := h.rng, h.app
	switch p := rng.IntN(100); {
	case p < 40:
		h.spill(rng.IntN(4))
		h.commit()
	case p < 50:
		h.spill(1 + rng.IntN(4))
	case p < 51:
		h.spill((1<<17)/a.PageSize + rng.IntN(8)) // more than the first chunk
	case p < 58:
		if h.writer == h.txn {
			h.commit()
		}
	case p < 62:
		h.rollback()
	case p < 65:
		if h.writer == h.txn && a.TailFrames() > 0 {
			a.RollbackTo(rng.IntN(a.TailFrames()))
		}
	case p < 68:
		if h.writer == h.txn && a.TailFrames() > 0 {
			h.check(a.Rewrite(rng.IntN(a.TailFrames()), 1+rng.Uint64N(1<<40)))
		}
	case p < 70: // a host that crashes in the middle of a write
		if h.writer == h.txn {
			h.rollback()
			h.check(a.Tear(rng.IntN(WALFrameHeaderSize + a.PageSize)))
		}
	case p < 71:
		if h.writer == h.txn && a.CommittedFrames() == 0 {
			h.rollback()
			h.check(a.TearHeader(rng.IntN(WALHeaderSize)))
		}
	case p < 78:
		c := h.readers[rng.IntN(len(h.readers))]
		if !c.in() {
			h.beginRead(c)
		} else {
			c.end()
		}
	case p < 84:
		for _, c := range h.readers {
			c.end()
		}
	case p < 96:
		h.checkpoint(CheckpointModePassive, nil)
	case p < 98:
		h.checkpoint([]string{CheckpointModeFull, CheckpointModeRestart}[rng.IntN(2)], nil)
	case p < 99 && rng.IntN(4) == 0:
		before := h.epoch
		h.checkpoint(CheckpointModeTruncate, nil)
		h.truncates += h.epoch - before
	}
}

// overrun restarts the WAL twice, with commits that nobody sees, as a process
// does that does not see our locks.
func (h *simHost) overrun() {
	h.rollback()
	mine := h.walModel.readers
	h.walModel.readers = make(map[*modelConn]int)
	for range 2 {
		h.commit()
		h.checkpoint(CheckpointModePassive, nil)
		h.commit()
	}
	h.walModel.readers = mine
	for c := range mine { // each holds what is the newest commit now
		h.beginRead(c)
	}
}

// powerLoss damages a frame, behind those that a checkpoint synced, and loses
// what was committed after it.
func (h *simHost) powerLoss() {
	h.losses++
	frame := h.durable + h.rng.IntN(h.mxFrame-h.durable+1)
	h.check(h.app.PowerLoss(frame, fakeapp.Damage(h.rng.IntN(fakeapp.Damages)), frame < h.mxFrame))
	h.writer = nil
	h.mxFrame = h.app.CommittedFrames()
	h.backfilled = 0 // all that SQLite knows after its recovery
}

// rewind loses commits, as a WAL does that is put back from a copy, and goes
// on in another way than before. It reports whether there was one to lose.
func (h *simHost) rewind() bool {
	h.rollback()
	h.losses++
	if h.mxFrame == h.durable {
		return false
	}
	frame := h.durable + h.rng.IntN(h.mxFrame-h.durable)
	h.check(h.app.PowerLoss(frame, fakeapp.Cut, true))
	h.mxFrame = h.app.CommittedFrames()
	h.backfilled = 0 // or the WAL could restart before anybody looks
	for c, mark := range h.walModel.readers {
		h.walModel.readers[c] = min(mark, h.mxFrame)
	}
	h.commit()
	return true
}
