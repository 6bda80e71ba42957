package litestream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"example.com/litestream/internal/fsys"
)

// pageSink takes the changes of one batch of records, which become visible
// together.
type pageSink interface {
	// begin makes the sink ready and returns the size of the database before
	// the batch, in pages.
	begin() (size uint32, err error)

	// put stores a page. After the last one of the batch comes page 1.
	put(pgno uint32, page []byte) error

	// commit gives the database its size in pages, and makes all visible.
	commit(size uint32) error
}

// batchMemory bounds, in bytes, the pages that a batch holds back so that each
// is written once.
const batchMemory = 16 << 20

// followBatch reads the records of one batch, verifies them, and brings their
// pages to a sink. A batch ends with the first record that is not partial.
type followBatch struct {
	state    followerState // behind what was read
	pageSize int           // bytes
	sink     pageSink
	name     string // of the upstream, for errors

	pages map[uint32][]byte // last images that the sink does not have
	free  [][]byte
	size  uint32 // of the database in pages after the newest commit; 0 before it

	begun bool
	old   uint32  // size of the database before the batch
	seen  pageSet // pages that came
}

// read reads the batch that begins with hdr.
func (b *followBatch) read(ctx context.Context, r StreamReader, hdr *StreamRecordHeader) error {
	b.pages = make(map[uint32][]byte)
	for {
		if !heartbeat(hdr) { // a transport may send one at any time
			if err := b.readRecord(ctx, r, hdr); err != nil {
				return fmt.Errorf("record at %s: %w", hdr.Pos(), err)
			}
			if hdr.Flags&StreamRecordFlagPartial == 0 {
				break
			}
		}
		var err error
		if hdr, err = r.Next(); err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
	}
	if b.size == 0 {
		return nil // nothing was committed
	}
	if err := b.begin(); err != nil {
		return err
	}
	lock := b.lockPage()
	for pgno := uint64(b.old) + 1; pgno <= uint64(b.size); pgno++ {
		if p := uint32(pgno); p != lock && !b.seen.has(p) {
			return &ChecksumError{Path: b.name, Pos: b.state.pos, Err: fmt.Errorf("page %d of %d did not come", p, b.size)}
		}
	}
	if err := b.flush(ctx, true); err != nil {
		return err
	}
	return b.sink.commit(b.size)
}

// lockPage is the page that SQLite's locks stand on; it holds no data.
func (b *followBatch) lockPage() uint32 { return uint32(lockPageOffset/b.pageSize) + 1 }

func (b *followBatch) begin() (err error) {
	if !b.begun {
		b.old, err = b.sink.begin()
		b.begun = err == nil
	}
	return err
}

// put brings a page to the sink.
func (b *followBatch) put(pgno uint32, page []byte) error {
	if err := b.begin(); err != nil {
		return err
	}
	return b.sink.put(pgno, page)
}

func (b *followBatch) readRecord(ctx context.Context, r StreamReader, hdr *StreamRecordHeader) error {
	zr := newFrameReader(io.NopCloser(r))
	var err error
	switch hdr.Type {
	case StreamRecordTypeSnapshot:
		err = b.readSnapshot(ctx, zr, hdr)
	case StreamRecordTypeWALSegment:
		err = b.readSegment(ctx, zr, hdr)
	default:
		err = fmt.Errorf("type %d is unknown", hdr.Type)
	}
	return errors.Join(err, zr.Close())
}

func heartbeat(hdr *StreamRecordHeader) bool {
	return hdr.Type == StreamRecordTypeWALSegment && hdr.Size == 0
}

// readSnapshot starts the database over.
func (b *followBatch) readSnapshot(ctx context.Context, r io.Reader, hdr *StreamRecordHeader) error {
	if hdr.Offset != 0 {
		return fmt.Errorf("snapshot at offset %d", hdr.Offset)
	}
	clear(b.pages)
	b.size = 0
	lock := b.lockPage()
	page := make([]byte, b.pageSize)
	for {
		n, err := io.ReadFull(r, page)
		if err == io.EOF {
			break
		} else if err == io.ErrUnexpectedEOF && n > 0 {
			return fmt.Errorf("snapshot ends inside page %d, or is torn: %w", b.size+1, err)
		} else if err != nil {
			return err
		}
		if b.size == 0 {
			if h, err := parseDatabaseHeader(page); err != nil {
				return err
			} else if h.pageSize != b.pageSize {
				return fmt.Errorf("%w: %d and %d bytes", ErrPageSizeMismatch, h.pageSize, b.pageSize)
			}
		}
		if b.size == maxPageNumber {
			return fmt.Errorf("database has more than %d pages", uint32(maxPageNumber))
		}
		b.size++
		switch {
		case b.size == 1:
			b.hold(1, page)
		case b.size != lock:
			b.seen.add(b.size)
			if err := b.put(b.size, page); err != nil {
				return err
			}
		}
		if b.size%256 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	if b.size == 0 {
		return errors.New("snapshot is empty")
	}
	b.state = followerState{pos: hdr.Pos()}
	return nil
}

// readSegment reads whole transactions: a segment ends with a commit (I2).
func (b *followBatch) readSegment(ctx context.Context, r io.Reader, hdr *StreamRecordHeader) error {
	pos, cur := b.state.pos, b.state.cursor
	if hdr.Generation == pos.Generation && hdr.Index-1 == pos.Index && hdr.Offset == 0 {
		pos, cur = hdr.Pos(), walCursor{} // the upstream's WAL restarted
	}
	if pos != hdr.Pos() {
		return fmt.Errorf("does not follow %s", b.state.pos)
	}
	if pos.Offset == 0 {
		var raw [WALHeaderSize]byte
		if _, err := io.ReadFull(r, raw[:]); err != nil {
			return err
		}
		h, err := parseWALHeader(raw[:])
		if err != nil {
			return &ChecksumError{Path: b.name, Pos: pos, Err: err}
		}
		if h.pageSize != b.pageSize {
			return fmt.Errorf("%w: %d and %d bytes", ErrPageSizeMismatch, h.pageSize, b.pageSize)
		}
		cur = startWAL(h)
	}
	frame := make([]byte, cur.header.frameSize())
	committed := true
	for {
		_, err := io.ReadFull(r, frame)
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		f, ok := cur.next(frame)
		if !ok {
			return &ChecksumError{Path: b.name, Pos: Pos{pos.Generation, pos.Index, cur.offset}, Err: errors.New("frame does not continue the wal")}
		}
		if f.pgno > maxPageNumber || f.pgno == b.lockPage() {
			return &ChecksumError{Path: b.name, Pos: Pos{pos.Generation, pos.Index, cur.offset}, Err: fmt.Errorf("frame of page %d", f.pgno)}
		}
		b.hold(f.pgno, frame[WALFrameHeaderSize:])
		if committed = f.commit != 0; committed {
			b.size = f.commit
		}
		if len(b.pages)*b.pageSize >= batchMemory {
			if err := b.flush(ctx, false); err != nil {
				return err
			}
		}
	}
	if !committed {
		return &ChecksumError{Path: b.name, Pos: Pos{pos.Generation, pos.Index, cur.offset}, Err: errors.New("segment ends inside a transaction")}
	}
	pos.Offset = cur.offset
	b.state = followerState{pos, cur}
	return nil
}

// hold keeps a copy of a page.
func (b *followBatch) hold(pgno uint32, page []byte) {
	b.seen.add(pgno)
	p := b.pages[pgno]
	if p == nil {
		if n := len(b.free); n > 0 {
			p, b.free = b.free[n-1], b.free[:n-1]
		} else {
			p = make([]byte, b.pageSize)
		}
		b.pages[pgno] = p
	}
	copy(p, page)
}

// flush brings the pages that are held to the sink, in order. Page 1 waits for
// the end.
func (b *followBatch) flush(ctx context.Context, end bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, pgno := range slices.Sorted(maps.Keys(b.pages)) {
		if pgno == 1 || end && pgno > b.size {
			continue
		}
		if err := b.put(pgno, b.pages[pgno]); err != nil {
			return err
		}
		b.free = append(b.free, b.pages[pgno])
		delete(b.pages, pgno)
	}
	if page := b.pages[1]; end && page != nil {
		return b.put(1, page)
	}
	return nil
}

// fileSink builds a new database file that nobody has open yet.
type fileSink struct {
	f        fsys.File
	pageSize int
}

func (s fileSink) begin() (uint32, error) { return 0, nil }

func (s fileSink) put(pgno uint32, page []byte) error {
	_, err := s.f.WriteAt(page, (int64(pgno)-1)*int64(s.pageSize))
	return err
}

func (s fileSink) commit(size uint32) error { return s.f.Truncate(int64(size) * int64(s.pageSize)) }

// errStartOver reports changes that cannot be applied, however often they are
// tried: a snapshot can.
var errStartOver = errors.New("changes cannot be applied")

// sqlSink changes a database through SQLite, in one transaction that begins
// with the first page, so that readers see all of a batch or nothing.
type sqlSink struct {
	conn     *pageConn
	ctx      context.Context
	snapshot bool // the batch starts the database over

	open  bool // the transaction
	write func(pgno uint32, page []byte) error
	end   func() error // of the statement that writes; nil without one
	pages uint32       // of the database before the batch
	top   uint32       // the highest page that exists now
}

func (s *sqlSink) begin() (size uint32, err error) {
	if err := s.conn.BeginWrite(s.ctx, BusyTimeout); err != nil {
		return 0, err
	}
	s.open = true
	if s.write, s.end, err = s.conn.PageWriter(s.ctx); err != nil {
		return 0, err
	}
	modified, err := s.conn.Modified(s.ctx)
	if err != nil {
		return 0, err
	}
	if modified && !s.snapshot {
		return 0, ErrFollowerModified
	}
	s.pages, err = s.conn.PageCount(s.ctx)
	s.top = s.pages
	return s.pages, err
}

func (s *sqlSink) put(pgno uint32, page []byte) error {
	if s.snapshot && pgno <= s.pages && pgno != 1 {
		same := false
		if err := s.conn.ReadPage(s.ctx, pgno, func(old []byte) { same = bytes.Equal(old, page) }); err != nil {
			return fmt.Errorf("read page %d: %w", pgno, err)
		}
		if same {
			return nil
		}
	}
	s.top = max(s.top, pgno)
	if pgno == 1 && s.top > s.pages {
		if err := s.grow(page); err != nil {
			return fmt.Errorf("grow to %d pages: %w", s.top, err)
		}
	}
	return s.write(pgno, page)
}

// grow makes SQLite see that pages were written behind the end of the
// database. It takes the number of pages from page 1 when a transaction begins
// and when a savepoint ends; before, it neither reads nor cuts off what is
// new. Page 1 is the new one, since its schema may be on such pages.
func (s *sqlSink) grow(page []byte) error {
	page = bytes.Clone(page)
	binary.BigEndian.PutUint32(page[databasePagesOffset:], s.top)
	if err := s.write(1, page); err != nil {
		return err
	}
	return errors.Join(s.conn.exec("SAVEPOINT grow"), s.conn.exec("RELEASE grow"))
}

// commit comes after page 1.
func (s *sqlSink) commit(size uint32) error {
	if s.top > size {
		if err := s.conn.Truncate(size); err != nil {
			return fmt.Errorf("%w: %w", errStartOver, err)
		}
	}
	if err := s.endWrites(); err != nil {
		return err
	}
	if err := s.conn.Commit(); err != nil {
		return err
	}
	s.open = false
	return nil
}

func (s *sqlSink) endWrites() (err error) {
	if s.end != nil {
		err = s.end()
		s.end = nil
	}
	return err
}

// abandon undoes a batch that was not committed.
func (s *sqlSink) abandon() error {
	if !s.open {
		return nil
	}
	s.open = false
	return errors.Join(s.endWrites(), s.conn.End())
}
