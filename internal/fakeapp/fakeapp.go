// Package fakeapp writes the WAL of an application that does not exist: what
// SQLite puts on disk when it commits, spills, rolls back, restarts and
// truncates, without SQLite and without its locks. It shares no code with the
// library, so that a mistake is not made twice.
//
// See https://www.sqlite.org/fileformat2.html#walformat.
package fakeapp

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
)

const (
	headerSize      = 32
	frameHeaderSize = 24
)

// sums is the state of the cumulative checksum.
type sums struct{ a, b uint32 }

func (s *sums) add(p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		s.a += binary.LittleEndian.Uint32(p[i:]) + s.b
		s.b += binary.LittleEndian.Uint32(p[i+4:]) + s.a
	}
}

// File is where a WAL is written.
type File interface {
	io.WriterAt
	io.Closer
	Truncate(size int64) error
}

// App is an application with one connection. It is not safe for concurrent use.
type App struct {
	PageSize int

	f   File
	rng *rand.Rand

	salt1, salt2 uint32
	seq          uint32   // in the header: counts restarts
	wals         [][]byte // committed bytes of each WAL since the start, the current one last
	history      []walHistory
	sum          sums   // at the end of the committed bytes
	tail         []byte // uncommitted frames behind them, as on disk
	tailSum      sums
	dirty        bool // a frame of the tail was rewritten: its chain is broken until the commit

	database map[uint32]string // the page oracle: content after the last commit
	size     uint32            // in pages
	content  uint64            // see State
	pending  map[uint32]string // pages of the open transaction
	newSize  uint32
	cut      uint32 // size to commit, or 0
}

// New starts an application that writes the WAL at path. Its choices depend on
// seed alone.
func New(path string, pageSize int, seed uint64) (*App, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	return NewFile(f, pageSize, seed), nil
}

// NewFile is like New, with a file that is empty.
func NewFile(f File, pageSize int, seed uint64) *App {
	a := &App{PageSize: pageSize, f: f, rng: rand.New(rand.NewPCG(seed, 1)), database: map[uint32]string{}}
	a.randomSalts()
	a.beginWAL()
	return a
}

// Close closes the file.
func (a *App) Close() error { return a.f.Close() }

func (a *App) randomSalts() { a.salt1, a.salt2 = a.rng.Uint32(), a.rng.Uint32() }

// Index is how many times the WAL has restarted.
func (a *App) Index() int { return len(a.wals) - 1 }

// Committed returns the committed bytes of one WAL, from its header on. They
// are nil if nothing was committed to it yet.
func (a *App) Committed(index int) []byte { return a.wals[index] }

func (a *App) frameSize() int { return frameHeaderSize + a.PageSize }

// TailFrames is how many uncommitted frames there are.
func (a *App) TailFrames() int { return len(a.tail) / a.frameSize() }

// CommittedFrames is how many committed frames the current WAL has.
func (a *App) CommittedFrames() int {
	return max(len(a.wals[a.Index()])-headerSize, 0) / a.frameSize()
}

// end is where the tail begins in the file.
func (a *App) end() int64 { return int64(max(len(a.wals[a.Index()]), headerSize)) }

// Write adds n frames of pages from first on to the open transaction. The same
// arguments write the same bytes.
func (a *App) Write(n int, first uint32, version uint64) error {
	return a.write(n, first, version, 0)
}

func (a *App) write(n int, first uint32, version uint64, commit uint32) error {
	if a.fresh() {
		if err := a.writeHeader(); err != nil {
			return err
		}
	}
	if a.pending == nil {
		a.pending, a.newSize = map[uint32]string{}, a.size
	}
	at := len(a.tail)
	for i := range n {
		pgno := first + uint32(i)
		page := a.page(pgno, version)
		size := uint32(0)
		a.newSize = max(a.newSize, pgno)
		if i == n-1 && commit != 0 {
			a.newSize = max(a.newSize, commit)
			if a.cut > 0 {
				a.newSize = a.cut
			}
			size = a.newSize
		}
		a.tail = a.appendFrame(a.tail, &a.tailSum, pgno, size, page)
		a.pending[pgno] = string(page)
	}
	_, err := a.f.WriteAt(a.tail[at:], a.end()+int64(at))
	return err
}

// page returns a page's content: mostly zeros, so that it compresses fast.
func (a *App) page(pgno uint32, version uint64) []byte {
	p := make([]byte, a.PageSize)
	if pgno == 1 {
		copy(p, "SQLite format 3\x00")
		binary.BigEndian.PutUint16(p[16:], uint16(a.PageSize)) // 1 stands for 65536
		if a.PageSize == 65536 {
			p[17] = 1
		}
		p[18], p[19] = 2, 2
	} else {
		binary.BigEndian.PutUint32(p, pgno)
	}
	binary.BigEndian.PutUint64(p[100:], version)
	binary.BigEndian.PutUint64(p[len(p)-8:], version*uint64(pgno))
	return p
}

func (a *App) appendFrame(b []byte, s *sums, pgno, commit uint32, page []byte) []byte {
	var h [frameHeaderSize]byte
	binary.BigEndian.PutUint32(h[0:], pgno)
	binary.BigEndian.PutUint32(h[4:], commit)
	binary.BigEndian.PutUint32(h[8:], a.salt1)
	binary.BigEndian.PutUint32(h[12:], a.salt2)
	s.add(h[:8])
	s.add(page)
	binary.BigEndian.PutUint32(h[16:], s.a)
	binary.BigEndian.PutUint32(h[20:], s.b)
	return append(append(b, h[:]...), page...)
}

// header returns the header of the current WAL and its checksum.
func (a *App) header() (b []byte, s sums) {
	b = make([]byte, headerSize)
	binary.BigEndian.PutUint32(b[0:], 0x377f0682)
	binary.BigEndian.PutUint32(b[4:], 3007000)
	binary.BigEndian.PutUint32(b[8:], uint32(a.PageSize))
	binary.BigEndian.PutUint32(b[12:], a.seq)
	binary.BigEndian.PutUint32(b[16:], a.salt1)
	binary.BigEndian.PutUint32(b[20:], a.salt2)
	s.add(b[:24])
	binary.BigEndian.PutUint32(b[24:], s.a)
	binary.BigEndian.PutUint32(b[28:], s.b)
	return b, s
}

func (a *App) writeHeader() error {
	b, s := a.header()
	a.sum, a.tailSum = s, s
	a.history[a.Index()].header = b
	_, err := a.f.WriteAt(b, 0)
	return err
}

// Commit ends the transaction with one more frame, the one that commits.
func (a *App) Commit(pgno uint32, version uint64) error { return a.CommitSize(pgno, version, 0) }

// CommitSize is like Commit, but cuts the database to a size in pages, unless
// that is 0.
func (a *App) CommitSize(pgno uint32, version uint64, size uint32) error {
	a.cut = size
	defer func() { a.cut = 0 }()
	if err := a.write(1, pgno, version, 1); err != nil {
		return err
	}
	if a.dirty { // checksums are made good at the last moment, as SQLite does
		if err := a.rechain(); err != nil {
			return err
		}
	}
	wal := a.wals[a.Index()]
	if wal == nil {
		wal, _ = a.header()
	}
	a.wals[a.Index()] = append(wal, a.tail...)
	a.sum = a.tailSum
	a.tail, a.dirty = nil, false
	a.apply(a.pending, a.newSize)
	a.pending = nil
	h := &a.history[a.Index()]
	h.commits = append(h.commits, commitState{int64(len(a.wals[a.Index()])), a.State()})
	return nil
}

// Rewrite changes one frame of the open transaction in place, as SQLite does
// when a spilled page changes again. The checksums behind it are wrong until
// the commit.
func (a *App) Rewrite(i int, version uint64) error {
	if i >= a.TailFrames() {
		return fmt.Errorf("rewrite frame %d of %d", i, a.TailFrames())
	}
	off := i * a.frameSize()
	pgno := binary.BigEndian.Uint32(a.tail[off:])
	page := a.page(pgno, version)
	copy(a.tail[off+frameHeaderSize:], page)
	if !a.inTail(pgno, i+1) { // else a later frame counts
		a.pending[pgno] = string(page)
	}
	a.dirty = true
	_, err := a.f.WriteAt(page, a.end()+int64(off+frameHeaderSize))
	return err
}

// inTail reports whether a frame of the tail from the nth on is of a page.
func (a *App) inTail(pgno uint32, n int) bool {
	for ; n < a.TailFrames(); n++ {
		if binary.BigEndian.Uint32(a.tail[n*a.frameSize():]) == pgno {
			return true
		}
	}
	return false
}

func (a *App) rechain() error {
	old := a.tail
	a.tail, a.tailSum = nil, a.sum
	for n := a.frameSize(); len(old) > 0; old = old[n:] {
		pgno, commit := binary.BigEndian.Uint32(old), binary.BigEndian.Uint32(old[4:])
		a.tail = a.appendFrame(a.tail, &a.tailSum, pgno, commit, old[frameHeaderSize:n])
	}
	_, err := a.f.WriteAt(a.tail, a.end())
	return err
}

// Rollback gives the open transaction up. Its frames stay in the file.
func (a *App) Rollback() {
	a.tail, a.tailSum, a.dirty, a.pending = nil, a.sum, false, nil
}

// RollbackTo gives up all but the first n frames of the open transaction, as
// ROLLBACK TO a savepoint does.
func (a *App) RollbackTo(n int) {
	if a.dirty || n >= a.TailFrames() {
		return
	}
	kept := a.tail[: n*a.frameSize() : n*a.frameSize()]
	a.tail, a.tailSum = kept, a.sum
	a.pending, a.newSize = map[uint32]string{}, a.size
	for b := kept; len(b) > 0; b = b[a.frameSize():] {
		a.tailSum.add(b[:8])
		a.tailSum.add(b[frameHeaderSize:a.frameSize()])
		pgno := binary.BigEndian.Uint32(b)
		a.pending[pgno] = string(b[frameHeaderSize:a.frameSize()])
		a.newSize = max(a.newSize, pgno)
	}
}

// Restart makes the next frame the first of a new WAL with the next salt. The
// frames of the old one stay until they are overwritten. It must have one.
func (a *App) Restart() {
	a.Rollback()
	a.salt1++
	a.salt2 = a.rng.Uint32()
	a.beginWAL()
}

// Truncate empties the file. The next WAL begins with random salts.
func (a *App) Truncate() error {
	a.Rollback()
	a.randomSalts()
	a.beginWAL()
	return a.f.Truncate(0)
}

// Tear leaves a part of a frame behind the last commit, as a crash does. The
// open transaction is lost.
func (a *App) Tear(n int) error {
	a.Rollback()
	if len(a.wals[a.Index()]) == 0 {
		return nil // it would tear the header: see TearHeader
	}
	s := a.sum
	b := a.appendFrame(nil, &s, 1, 1, a.page(1, a.rng.Uint64()))
	_, err := a.f.WriteAt(b[:min(n, len(b)-1)], a.end())
	return err
}

// TearHeader leaves the part of the header of a WAL to which nothing was
// committed yet. The next frame makes it good.
func (a *App) TearHeader(n int) error {
	a.Rollback()
	if len(a.wals[a.Index()]) != 0 {
		return nil
	}
	b, _ := a.header()
	_, err := a.f.WriteAt(b[:min(n, headerSize-1)], 0)
	return err
}

// Database returns the database file as every commit has left it.
func (a *App) Database() []byte {
	b := make([]byte, int64(a.size)*int64(a.PageSize))
	for pgno, page := range a.database {
		copy(b[int64(pgno-1)*int64(a.PageSize):], page)
	}
	return b
}
