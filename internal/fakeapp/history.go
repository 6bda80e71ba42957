package fakeapp

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
)

// State stands for the content of the whole database. Equal databases have
// equal states.
type State struct {
	Pages   uint32
	Content uint64 // of the PageSums, combined
}

// PageSum hashes one page. Combine the sums of all pages of a database with ^.
func PageSum(pgno uint32, page []byte) uint64 {
	const prime = 0x9e3779b97f4a7c15
	h := uint64(pgno) * prime
	for ; len(page) >= 8; page = page[8:] {
		h = (h ^ binary.LittleEndian.Uint64(page)) * prime
		h ^= h >> 29
	}
	return h
}

// walHistory is what is known of one WAL since the start.
type walHistory struct {
	header   []byte            // nil until it is written
	start    State             // of the database when the WAL began
	database map[uint32]string // the same, page by page
	commits  []commitState
}

type commitState struct {
	end   int64
	state State
}

// beginWAL notes that a new WAL has begun.
func (a *App) beginWAL() {
	a.seq++
	a.wals = append(a.wals, nil)
	a.history = append(a.history, walHistory{start: a.State(), database: maps.Clone(a.database)})
	if n := len(a.history); n > 1 {
		a.history[n-2].database = nil // nobody goes back to it
	}
}

// Backfilled returns the database file as it is when all WALs but the current
// one are in it.
func (a *App) Backfilled() io.ReaderAt { return pages{a} }

type pages struct{ a *App }

func (p pages) ReadAt(b []byte, off int64) (int, error) {
	size := int64(p.a.PageSize)
	if off%size != 0 || int64(len(b)) != size {
		return 0, errors.New("not a page")
	}
	page, ok := p.a.history[p.a.Index()].database[uint32(off/size)+1]
	if !ok {
		return 0, io.EOF
	}
	return copy(b, page), nil
}

// fresh reports whether the next frame is the first of a WAL.
func (a *App) fresh() bool { return len(a.wals[a.Index()]) == 0 && len(a.tail) == 0 }

// State is that of the database after the last commit.
func (a *App) State() State { return State{a.size, a.content} }

// Size is that of the database after the last commit, in pages.
func (a *App) Size() uint32 { return a.size }

// PendingSize is the size in pages that a commit would leave now.
func (a *App) PendingSize() uint32 {
	if a.pending == nil {
		return a.size
	}
	return a.newSize
}

// StateAt returns the state after the commit that ends at an offset of a WAL,
// or, for an offset of 0 or just behind its header, that at its start.
func (a *App) StateAt(index int, offset int64) (s State, ok bool) {
	h := &a.history[index]
	if offset <= headerSize {
		return h.start, true
	}
	for i := len(h.commits) - 1; i >= 0; i-- {
		if h.commits[i].end == offset {
			return h.commits[i].state, true
		}
	}
	return s, false
}

// Header returns the header of a WAL, nil if it was not written yet.
func (a *App) Header(index int) []byte { return a.history[index].header }

// Forget drops the bytes of all WALs before index. Their states remain.
func (a *App) Forget(index int) {
	for i := range a.wals[:min(max(index, 0), a.Index())] {
		a.wals[i] = nil
	}
}

// apply makes pages the content of the database, and cuts it to a size.
func (a *App) apply(pages map[uint32]string, size uint32) {
	for pgno, page := range pages {
		if pgno > size {
			continue // spilled before the database was cut
		}
		if old, ok := a.database[pgno]; ok {
			a.content ^= PageSum(pgno, []byte(old))
		}
		a.database[pgno] = page
		a.content ^= PageSum(pgno, []byte(page))
	}
	for pgno := size + 1; pgno <= a.size; pgno++ {
		if old, ok := a.database[pgno]; ok {
			a.content ^= PageSum(pgno, []byte(old))
			delete(a.database, pgno)
		}
	}
	a.size = size
}

// Create gives the database its first page, without a commit. It must be the
// first call.
func (a *App) Create() (page []byte) {
	page = a.page(1, 1)
	a.apply(map[uint32]string{1: string(page)}, 1)
	a.history[0].start, a.history[0].database = a.State(), maps.Clone(a.database)
	return page
}

// Damage is what a power loss does to a frame.
type Damage int

// Kinds of damage.
const (
	Zeroed  Damage = iota // the frame reads as zeros
	Garbled               // a byte of its page is wrong
	Cut                   // the file ends in it
	damages
)

// Damages is the number of kinds.
const Damages = int(damages)

// PowerLoss damages a committed frame of the current WAL, unless frame is
// their number, and loses the open transaction. The database is what SQLite
// recovers: that of the last commit before the frame. What stands behind the
// frame in the file stays.
//
// With fork, what was committed until now keeps its index, and the current WAL
// goes on under the next.
func (a *App) PowerLoss(frame int, damage Damage, fork bool) error {
	a.Rollback()
	i := a.Index()
	limit := int64(headerSize + frame*a.frameSize())
	if frame < a.CommittedFrames() {
		var err error
		switch damage {
		case Zeroed:
			_, err = a.f.WriteAt(make([]byte, a.frameSize()), limit)
		case Garbled:
			last := limit + int64(a.frameSize()) - 1
			_, err = a.f.WriteAt([]byte{^a.wals[i][last]}, last)
		case Cut:
			err = a.f.Truncate(limit + int64(a.frameSize()/3))
		}
		if err != nil {
			return err
		}
	}
	h := a.history[i]
	n, end := 0, int64(0)
	for n < len(h.commits) && h.commits[n].end <= limit {
		end = h.commits[n].end
		n++
	}
	wal, commits := a.wals[i][:end:end], h.commits[:n:n]
	if end == 0 {
		wal = nil
	}
	if fork {
		a.wals = append(a.wals, nil)
		a.history = append(a.history, walHistory{header: h.header, start: h.start, database: h.database})
		i++
	}
	a.wals[i], a.history[i].commits = wal, commits
	a.restore(i)
	return nil
}

// restore computes the state after the last commit of the current WAL.
func (a *App) restore(i int) {
	h := &a.history[i]
	a.database, a.size, a.content = maps.Clone(h.database), h.start.Pages, h.start.Content
	a.tailSum = a.sum
	wal := a.wals[i]
	if len(wal) == 0 {
		return // the next frame begins with the header
	}
	pages := make(map[uint32]string)
	for wal = wal[headerSize:]; len(wal) > 0; wal = wal[a.frameSize():] {
		pages[binary.BigEndian.Uint32(wal)] = string(wal[frameHeaderSize:a.frameSize()])
		if size := binary.BigEndian.Uint32(wal[4:]); size > 0 {
			a.apply(pages, size)
			clear(pages)
		}
		a.sum = sums{binary.BigEndian.Uint32(wal[16:]), binary.BigEndian.Uint32(wal[20:])}
	}
	a.tailSum = a.sum
}

// EachFrame calls fn for committed frames of the current WAL.
func (a *App) EachFrame(from, to int, fn func(pgno uint32, page []byte) error) error {
	wal := a.wals[a.Index()]
	for n := from; n < to; n++ {
		frame := wal[headerSize+n*a.frameSize():][:a.frameSize()]
		if err := fn(binary.BigEndian.Uint32(frame), frame[frameHeaderSize:]); err != nil {
			return err
		}
	}
	return nil
}
