package litestream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"example.com/litestream/internal/fsys"
)

const (
	restoreBuffers = 4

	// lockPageOffset is the byte that SQLite locks. The page that holds it
	// stores nothing and is in no WAL.
	lockPageOffset = 0x40000000
)

// pageFile builds a database from WAL indexes, newest first, and from the
// snapshot, which may come at the same time: a page that a WAL index has
// claimed is never overwritten by anything older.
type pageFile struct {
	f    fsys.File
	base string // name of the snapshot, for errors

	mu            sync.Mutex // guards what follows, and is held while the snapshot is written
	pageSize      int        // bytes; 0 until known
	size          uint32     // pages after the newest commit; 0 if there is none yet
	claimed       pageSet    // pages that the WAL has written
	snapshotPages uint32
}

// applyIndex writes the pages that no newer index has written.
func (p *pageFile) applyIndex(ctx context.Context, m *walImage) error {
	pages, err := p.claim(m)
	if err != nil || len(pages) == 0 {
		return err
	}
	pageSize := m.cursor.header.pageSize
	buf := chunks.get()
	defer chunks.put(buf)
	run := buf[:0]          // images of consecutive pages
	first := pages[0] >> 32 // page number of the run's first
	flush := func() error {
		_, err := p.f.WriteAt(run, (int64(first)-1)*int64(pageSize))
		run = buf[:0]
		return err
	}
	for _, page := range pages {
		pgno := page >> 32
		if pgno != first+uint64(len(run)/pageSize) || len(run) == len(buf) {
			if err := flush(); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			first = pgno
		}
		run = run[:len(run)+pageSize]
		if err := m.readPage(run[len(run)-pageSize:], uint32(page)); err != nil {
			return err
		}
	}
	return flush()
}

// claim returns the entries of the image's directory that are to be written,
// and marks their pages. It takes over the directory.
func (p *pageFile) claim(m *walImage) ([]uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.setPageSize(m.cursor.header.pageSize); err != nil {
		return nil, &ChecksumError{Path: m.name, Err: err}
	}
	if p.size == 0 {
		p.size = m.size
	}
	pages := m.pages[:0]
	for _, page := range m.pages {
		if pgno := uint32(page >> 32); pgno <= p.size && p.claimed.add(pgno) {
			pages = append(pages, page)
		}
	}
	return pages, nil
}

func (p *pageFile) setPageSize(n int) error {
	if p.pageSize != 0 && p.pageSize != n {
		return fmt.Errorf("page size is %d, elsewhere in the generation it is %d", n, p.pageSize)
	}
	p.pageSize = n
	return nil
}

// writeSnapshot writes the pages of the snapshot that no WAL index has
// claimed. One goroutine decompresses while another writes.
func (p *pageFile) writeSnapshot(ctx context.Context, f *fetcher, generation string, index int) (err error) {
	g, ctx := errgroup.WithContext(ctx)
	file, err := f.snapshot(ctx, generation, index)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()

	free := make(chan []byte, restoreBuffers)
	full := make(chan []byte, restoreBuffers)
	for range restoreBuffers {
		buf := chunks.get()
		defer chunks.put(buf)
		free <- buf
	}
	g.Go(func() error {
		defer close(full)
		for {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			n, err := readFull(file, buf[:maxChunk])
			if err != nil && err != io.EOF {
				return err
			}
			full <- buf[:n] // never blocks: it has room for every buffer
			if err == io.EOF {
				return nil
			}
		}
	})
	g.Go(func() error {
		var offset int64
		for buf := range full {
			if err := p.checkSnapshot(buf, offset); err != nil {
				return file.corrupt(offset, err)
			}
			if err := p.writeSnapshotAt(buf, offset); err != nil {
				return err
			}
			offset += int64(len(buf))
			free <- buf
		}
		return nil
	})
	return g.Wait()
}

// readFull fills p unless r ends first: then it returns io.EOF.
func readFull(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// checkSnapshot verifies what can be verified of the snapshot's bytes b at
// offset, and counts their pages. All but the last piece are full buffers.
func (p *pageFile) checkSnapshot(b []byte, offset int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset == 0 {
		hdr, err := parseDatabaseHeader(b)
		if err != nil {
			return err
		}
		if err := p.setPageSize(hdr.pageSize); err != nil {
			return err
		}
	}
	if len(b)%p.pageSize != 0 {
		return fmt.Errorf("%d bytes are not a whole number of %d byte pages", offset+int64(len(b)), p.pageSize)
	}
	pages := (offset + int64(len(b))) / int64(p.pageSize)
	if pages > maxPageNumber {
		return fmt.Errorf("database has more than %d pages", uint32(maxPageNumber))
	}
	p.snapshotPages = uint32(pages)
	return nil
}

// writeSnapshotAt writes the unclaimed pages of b in runs. It holds the mutex,
// so that no page is claimed, and written, between the look and the write.
func (p *pageFile) writeSnapshotAt(b []byte, offset int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pgno := uint32(offset/int64(p.pageSize)) + 1
	for len(b) > 0 {
		claimed, n := p.claimed.has(pgno), 0
		for n < len(b) && p.claimed.has(pgno) == claimed {
			n += p.pageSize
			pgno++
		}
		// A new file reads as zeros where nothing was written.
		if !claimed && !isZero(b[:n]) {
			if _, err := p.f.WriteAt(b[:n], offset); err != nil {
				return err
			}
		}
		b, offset = b[n:], offset+int64(n)
	}
	return nil
}

var zeros [4096]byte

func isZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// finish gives the file its size, that after the newest commit, once all
// pages are written. A page that came from nowhere is an error.
func (p *pageFile) finish() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := p.size
	if size == 0 {
		size = p.snapshotPages
	}
	lockPage := uint32(lockPageOffset/p.pageSize) + 1
	for pgno := uint64(p.snapshotPages) + 1; pgno <= uint64(size); pgno++ {
		if uint32(pgno) != lockPage && !p.claimed.has(uint32(pgno)) {
			return &ChecksumError{Path: p.base, Err: fmt.Errorf("page %d of %d is neither here nor in the wal behind", pgno, size)}
		}
	}
	return p.f.Truncate(int64(size) * int64(p.pageSize))
}

// maxPageNumber is the highest that SQLite uses.
const maxPageNumber = 0xfffffffe

// pageSet is a set of page numbers. It takes memory where there are members.
type pageSet struct{ chunks []*pageChunk }

// pageChunk is a bitmap of 32768 page numbers.
type pageChunk [512]uint64

const pageChunkBits = 15

// add reports whether pgno was not yet in the set.
func (s *pageSet) add(pgno uint32) bool {
	i := int(pgno >> pageChunkBits)
	if i >= len(s.chunks) {
		s.chunks = append(s.chunks, make([]*pageChunk, i+1-len(s.chunks))...)
	}
	if s.chunks[i] == nil {
		s.chunks[i] = new(pageChunk)
	}
	word, bit := &s.chunks[i][pgno>>6&511], uint64(1)<<(pgno&63)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

func (s *pageSet) has(pgno uint32) bool {
	i := int(pgno >> pageChunkBits)
	return i < len(s.chunks) && s.chunks[i] != nil && s.chunks[i][pgno>>6&511]&(1<<(pgno&63)) != 0
}
