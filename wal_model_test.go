package litestream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// walModel is SQLite's WAL locking in memory: what a commit, a reader and a
// checkpoint may do to frames and marks. See the comments of walTryBeginRead,
// walCheckpoint and walRestartLog in SQLite's wal.c.
type walModel struct {
	epoch      int // how often the WAL restarted
	mxFrame    int // committed frames of this epoch
	backfilled int // of these, in the database file
	readers    map[*modelConn]int
	writer     *modelConn
	nextCkpt   bool // another connection's checkpoint runs at this moment

	commits int // weight of commits in what the host does; the rest weighs 4
	rng     *rand.Rand
	fault   func(op string) error // decides about each call of the library
	quiet   bool                  // keep no trace
	disk    walDisk               // if not nil, does what the model decides
	trace   []string
	broken  error // the first violation of I5 while the library had a transaction

	// Of the library: what capture has seen.
	seenEpoch, seenFrames int // seenEpoch is negative before the first capture
}

// walDisk carries out on files what a walModel decides.
type walDisk interface {
	restarted(truncated bool)
	backfill(from, to int) // frames
}

func (m *walModel) note(format string, a ...any) {
	if m.quiet {
		return
	}
	m.trace = append(m.trace, fmt.Sprintf("[%d: %d/%d] ", m.epoch, m.backfilled, m.mxFrame)+fmt.Sprintf(format, a...))
}

// marksHeld reports whether a read mark other than 0 is held, and whether 0 is.
func (m *walModel) marksHeld() (some, zero bool) {
	for _, mark := range m.readers {
		if mark == 0 {
			zero = true
		} else {
			some = true
		}
	}
	return some, zero
}

// beginRead returns the mark: 0 if the database file alone holds the newest
// commit, else the newest commit.
func (m *walModel) beginRead(c *modelConn) {
	mark := m.mxFrame
	if m.backfilled == m.mxFrame {
		mark = 0
	}
	m.readers[c] = mark
}

// commit appends n frames, after a restart if nothing is in its way.
func (m *walModel) commit(n int) {
	if m.writer != nil {
		return // it would wait
	}
	if some, _ := m.marksHeld(); m.mxFrame > 0 && m.backfilled == m.mxFrame && !some {
		m.restart(false)
	}
	m.mxFrame += n
	m.note("host commits %d", n)
}

func (m *walModel) restart(truncated bool) {
	pinned := false
	for c := range m.readers {
		pinned = pinned || c.host != nil
	}
	if pinned && m.broken == nil && m.seenEpoch >= 0 && (m.seenEpoch != m.epoch || m.seenFrames != m.mxFrame) {
		m.broken = fmt.Errorf("wal %d restarts with %d frames; captured were %d of wal %d", m.epoch, m.mxFrame, m.seenFrames, m.seenEpoch)
	}
	m.epoch++
	m.mxFrame, m.backfilled = 0, 0
	m.note("wal restarts")
	if m.disk != nil {
		m.disk.restarted(truncated)
	}
}

// checkpoint backfills as far as readers permit. The mark of the connection
// itself, if it has one, counts too.
func (m *walModel) checkpoint(mode string, self *modelConn) checkpointResult {
	if m.nextCkpt {
		m.nextCkpt = false
		return checkpointResult{Busy: true, Log: -1, Backfilled: -1}
	}
	blocking := mode != CheckpointModePassive
	if blocking && m.writer != nil && m.writer != self {
		// SQLite degrades to PASSIVE, and reports busy.
		blocking = false
		r := m.checkpoint(CheckpointModePassive, self)
		r.Busy = true
		return r
	}
	safe := m.mxFrame
	some, zero := m.marksHeld()
	for _, mark := range m.readers {
		if mark > 0 {
			safe = min(safe, mark)
		}
	}
	if m.backfilled < safe && !zero {
		if m.disk != nil {
			m.disk.backfill(m.backfilled, safe)
		}
		m.backfilled = safe
	}
	r := checkpointResult{Log: m.mxFrame, Backfilled: m.backfilled}
	if blocking {
		r.Busy = m.backfilled < m.mxFrame
		if !r.Busy && (mode == CheckpointModeRestart || mode == CheckpointModeTruncate) {
			r.Busy = some
			if !some && mode == CheckpointModeTruncate {
				if m.mxFrame > 0 {
					m.restart(true)
				}
				r.Log, r.Backfilled = 0, 0
			}
		}
	}
	m.note("checkpoint %s: %+v", mode, r)
	return r
}

// host lets the other connections do something, as they may between any two
// steps of the library.
func (m *walModel) host(readers []*modelConn) {
	for range m.rng.IntN(4) {
		c := readers[m.rng.IntN(len(readers))]
		switch m.rng.IntN(4 + m.commits) {
		default:
			m.commit(1 + m.rng.IntN(3))
		case 0:
			if _, ok := m.readers[c]; !ok {
				m.beginRead(c)
				m.note("host reader begins: %d", m.readers[c])
			} else {
				delete(m.readers, c)
				m.note("host reader ends")
			}
		case 1:
			m.checkpoint(CheckpointModePassive, nil)
		case 2:
			m.checkpoint([]string{CheckpointModeFull, CheckpointModeRestart, CheckpointModeTruncate}[m.rng.IntN(3)], nil)
		case 3:
			m.nextCkpt = m.rng.IntN(2) == 0
		}
	}
}

// modelConn is the library's connection to a walModel, and, without a host, a
// reader of the host's.
type modelConn struct {
	m      *walModel
	host   func() // called between the library's steps
	closed bool
}

func (c *modelConn) in() bool { _, ok := c.m.readers[c]; return ok }

func (c *modelConn) step(op string) error {
	c.host()
	defer c.host()
	if c.closed {
		return errors.New("model: " + op + " on a closed connection")
	}
	if err := c.m.fault(op); err != nil {
		c.m.note("%s fails", op)
		return err
	}
	return nil
}

func (c *modelConn) BeginRead(context.Context) error {
	if err := c.step("begin read"); err != nil {
		return err
	}
	if c.in() {
		return errors.New("model: cannot start a transaction within a transaction")
	}
	c.m.beginRead(c)
	c.m.note("begin read: %d", c.m.readers[c])
	c.host()
	// The first read of a transaction failed, and so did its end.
	return c.m.fault("read")
}

func (c *modelConn) BeginWrite(context.Context, time.Duration) error {
	if err := c.step("begin write"); err != nil {
		return err
	}
	if c.in() {
		return errors.New("model: cannot start a transaction within a transaction")
	}
	c.m.beginRead(c)
	c.m.writer = c
	c.m.note("begin write: %d", c.m.readers[c])
	c.host()
	return nil
}

func (c *modelConn) InTransaction() (bool, error) { return c.in(), nil }

func (c *modelConn) end() {
	if c.m.writer == c {
		c.m.writer = nil
	}
	delete(c.m.readers, c)
}

func (c *modelConn) End() error {
	if err := c.step("end"); err != nil {
		return err
	}
	if !c.in() {
		return errors.New("model: no transaction is active")
	}
	c.end()
	c.m.note("end")
	c.host()
	return nil
}

func (c *modelConn) Checkpoint(_ context.Context, mode string) (checkpointResult, error) {
	if err := c.step("checkpoint"); err != nil {
		return checkpointResult{}, err
	}
	if c.in() {
		return checkpointResult{}, errors.New("model: checkpoint within a transaction")
	}
	r := c.m.checkpoint(mode, c)
	c.host()
	return r, nil
}

// Close always ends the transaction, whatever it returns.
func (c *modelConn) EachPage(context.Context, func(uint32, []byte) error) error {
	return errors.New("model: it has no pages")
}

func (c *modelConn) Close() error {
	err := c.m.fault("close")
	c.end()
	c.closed = true
	c.m.note("close")
	c.host()
	return err
}

// capture is the library's, without bytes.
func (m *walModel) capture(host func()) error {
	host()
	if err := m.fault("capture"); err != nil {
		return err
	}
	m.seenEpoch, m.seenFrames = m.epoch, m.mxFrame
	m.note("capture")
	host()
	return nil
}
