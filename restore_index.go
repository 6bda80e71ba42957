package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync/atomic"

	"example.com/litestream/internal/fsys"
)

const (
	// walWindowSize is what a walImage begins with: room for walReadSize and
	// the largest frame.
	walWindowSize = 256 << 10

	// walReadSize is the least room for one read; a whole block of a segment.
	walReadSize = 64 << 10

	// walMemoryLimit bounds the WAL bytes that one restore holds in memory,
	// beyond one window for each index that it reads at a time.
	walMemoryLimit = 8 << 20
)

var walWindows = bufferPool{size: walWindowSize}

// walImage is the verified content of one WAL index, with a directory of the
// last image of each page. The first bytes go to a scratch file when they
// are too many for memory.
//
//	0                    base                cursor          end
//	+--------------------+-------------------+---------------+
//	| scratch            | window: verified  | not yet       |
//	+--------------------+-------------------+---------------+
type walImage struct {
	name   string    // for errors: the WAL file, or its first segment
	cursor walCursor // behind the last verified frame
	commit int64     // offset behind the last commit, or behind the header
	size   uint32    // database size in pages after the last commit; 0 if there is none
	pages  []uint64  // page number << 32 | frame number; after finish sorted, each page once

	window []byte
	base   int64
	memory *atomic.Int64 // bytes left of walMemoryLimit, shared
	taken  int64         // of memory

	fsys        fsys.FS
	scratchName string
	file        fsys.File // holds the bytes before base; nil while base is 0
	role        walFileRole
	released    bool
}

// walFileRole says whose a walImage's file is.
type walFileRole int

const (
	walFileScratch walFileRole = iota // the image creates and removes it
	walFileOutput                     // the caller's: the WAL is written to it
	walFileInput                      // the caller's: the WAL is read from it
)

// newWALImage returns an empty image. Its owner calls release.
func newWALImage(name string, fsy fsys.FS, scratchName string, memory *atomic.Int64) *walImage {
	return &walImage{name: name, fsys: fsy, scratchName: scratchName, memory: memory, window: walWindows.get()[:0]}
}

// newWALFileImage returns an empty image whose bytes are in a file of the
// caller, never in memory alone.
func newWALFileImage(file fsys.File, role walFileRole) *walImage {
	return &walImage{name: file.Name(), file: file, role: role, window: walWindows.get()[:0]}
}

// end returns the offset behind the bytes read so far.
func (m *walImage) end() int64 { return m.base + int64(len(m.window)) }

// load reads and verifies all segments of one index, which are sorted.
func (m *walImage) load(ctx context.Context, f *fetcher, segments []WALSegmentInfo) (err error) {
	files := f.segments(ctx, segments)
	defer func() { err = errors.Join(err, files.close()) }()
	for {
		file, err := files.next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := errors.Join(m.readSegment(file), file.Close()); err != nil {
			return err
		}
	}
	m.finish()
	return nil
}

// readSegment appends one segment. It must begin where the last one ended and
// end at a commit or at the header (I1, I2).
func (m *walImage) readSegment(file *fetchedFile) error {
	if file.pos.Offset > m.end() {
		missing := file.pos
		missing.Offset = m.end()
		return &ChecksumError{Path: segmentName(missing), Pos: missing, Err: fmt.Errorf("it is missing before %s", file.name)}
	}
	if file.pos.Offset < m.end() {
		return file.corrupt(m.end(), fmt.Errorf("segment begins at offset %d, the one before it ends at %d", file.pos.Offset, m.end()))
	}
	for {
		if err := m.makeRoom(); err != nil {
			return err
		}
		n, err := file.Read(m.window[len(m.window):cap(m.window)])
		m.window = m.window[:len(m.window)+n]
		if verr := m.verify(); verr != nil {
			return file.corrupt(m.cursor.offset, verr)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	switch {
	case m.end() != m.cursor.offset:
		return file.corrupt(m.cursor.offset, fmt.Errorf("%d bytes behind the last whole frame", m.end()-m.cursor.offset))
	case m.cursor.offset != m.commit:
		return file.corrupt(m.commit, errors.New("segment ends inside a transaction"))
	}
	return nil
}

// verify moves the cursor over the whole frames in the window.
func (m *walImage) verify() error {
	for {
		b := m.window[m.cursor.offset-m.base:]
		if m.cursor.header.isZero() {
			if len(b) < WALHeaderSize {
				return nil
			}
			h, err := parseWALHeader(b)
			if err != nil {
				return err
			}
			m.cursor = startWAL(h)
			m.commit = m.cursor.offset
			continue
		}
		if len(b) < m.cursor.header.frameSize() {
			return nil
		}
		frame := m.cursor.frames()
		f, ok := m.cursor.next(b)
		if !ok {
			return errors.New("frame does not continue the wal")
		}
		if frame > math.MaxUint32 {
			return errors.New("wal has too many frames")
		}
		m.pages = append(m.pages, uint64(f.pgno)<<32|uint64(frame))
		if f.commit != 0 {
			m.size, m.commit = f.commit, m.cursor.offset
		}
	}
}

// makeRoom makes at least walReadSize free at the end of the window: it grows
// the window within the memory limit, else moves verified bytes to the file.
func (m *walImage) makeRoom() error {
	if cap(m.window)-len(m.window) >= walReadSize {
		return nil
	}
	if m.file == nil {
		if m.grow() {
			return nil
		}
		f, err := m.fsys.OpenFile(m.scratchName, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		m.file = f
	}
	return m.flush()
}

func (m *walImage) grow() bool {
	n := int64(cap(m.window))
	if m.memory.Add(-n) < 0 {
		m.memory.Add(n)
		return false
	}
	m.taken += n
	window := make([]byte, len(m.window), 2*cap(m.window))
	copy(window, m.window)
	if cap(m.window) == walWindowSize {
		walWindows.put(m.window)
	}
	m.window = window
	return true
}

// flush moves the verified bytes of the window to the file.
func (m *walImage) flush() error {
	n := int(m.cursor.offset - m.base)
	if m.role != walFileInput {
		if _, err := m.file.WriteAt(m.window[:n], m.base); err != nil {
			return err
		}
	}
	m.base = m.cursor.offset
	m.window = m.window[:copy(m.window, m.window[n:])]
	return nil
}

// finish sorts the directory and keeps the last image of each page.
func (m *walImage) finish() {
	slices.Sort(m.pages)
	n := 0
	for i, p := range m.pages {
		if i+1 < len(m.pages) && m.pages[i+1]>>32 == p>>32 {
			continue
		}
		m.pages[n] = p
		n++
	}
	m.pages = m.pages[:n]
}

// readPage reads the page of a frame, counted from 0.
func (m *walImage) readPage(p []byte, frame uint32) error {
	off := WALHeaderSize + int64(frame)*int64(m.cursor.header.frameSize()) + WALFrameHeaderSize
	if off >= m.base {
		copy(p, m.window[off-m.base:])
		return nil
	}
	_, err := m.file.ReadAt(p, off)
	return err
}

// release frees memory and removes the scratch file. It may be called twice.
func (m *walImage) release() error {
	if m.released {
		return nil
	}
	m.released = true
	if m.taken > 0 {
		m.memory.Add(m.taken)
	}
	if cap(m.window) == walWindowSize {
		walWindows.put(m.window)
	}
	m.window, m.pages = nil, nil
	if m.file == nil || m.role != walFileScratch {
		return nil
	}
	return errors.Join(m.file.Close(), m.fsys.Remove(m.scratchName))
}
