package litestream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// WALWriter writes a SQLite WAL, header and frames, as SQLite itself would on
// this machine: given the salts of the first WAL of a database, and its pages,
// the file is the same byte for byte. It must not be pointed at the -wal of a
// database that is open.
//
// It does not sync the file. It is not safe for concurrent use.
type WALWriter struct {
	Salt0, Salt1 uint32 // set before WriteHeader

	path     string
	mode     os.FileMode
	pageSize int

	f   *os.File
	cur walCursor // where the next frame goes; its header is zero until written
	buf []byte    // one frame
}

// NewWALWriter returns a writer of the WAL at path. The mode is that of the
// file, before umask; pageSize is in bytes.
func NewWALWriter(path string, mode os.FileMode, pageSize int) *WALWriter {
	return &WALWriter{path: path, mode: mode, pageSize: pageSize}
}

// Open creates the file, or empties one that exists.
func (w *WALWriter) Open() (err error) {
	if w.f != nil {
		return fmt.Errorf("open wal writer: %s: already open", w.path)
	}
	if !isPageSize(int64(w.pageSize)) {
		return fmt.Errorf("open wal writer: %s: page size %d", w.path, w.pageSize)
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, w.mode)
	if err != nil {
		return fmt.Errorf("open wal writer: %w", err)
	}
	w.f, w.cur = f, walCursor{}
	return nil
}

// Close closes the file. Closing a writer that is not open does nothing.
func (w *WALWriter) Close() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	if err != nil {
		return fmt.Errorf("close wal writer: %w", err)
	}
	return nil
}

var errWALWriterClosed = errors.New("wal writer is not open")

// WriteHeader writes the header, once, before any frame.
func (w *WALWriter) WriteHeader() error {
	if w.f == nil {
		return fmt.Errorf("write wal header: %s: %w", w.path, errWALWriterClosed)
	}
	if !w.cur.header.isZero() {
		return fmt.Errorf("write wal header: %s: already written", w.path)
	}
	h := newWALHeader(w.pageSize, w.Salt0, w.Salt1, nativeBigEndian)
	if _, err := w.f.WriteAt(h.raw[:], 0); err != nil {
		return fmt.Errorf("write wal header: %w", err)
	}
	w.cur = startWAL(h)
	return nil
}

// WriteFrame appends the image of page pgno, numbered from 1. In the last
// frame of a transaction, commit is the size of the database in pages; in all
// others it is 0. A frame whose write failed may be written again.
func (w *WALWriter) WriteFrame(pgno, commit uint32, data []byte) error {
	switch {
	case w.f == nil:
		return fmt.Errorf("write wal frame: %s: %w", w.path, errWALWriterClosed)
	case w.cur.header.isZero():
		return fmt.Errorf("write wal frame: %s: no header written", w.path)
	case pgno == 0:
		return fmt.Errorf("write wal frame: %s: page number 0", w.path)
	case len(data) != w.pageSize:
		return fmt.Errorf("write wal frame: %s: %d bytes of data, want %d", w.path, len(data), w.pageSize)
	}
	next := w.cur
	w.buf = next.appendFrame(w.buf[:0], walFrame{pgno: pgno, commit: commit}, data)
	if _, err := w.f.WriteAt(w.buf, w.cur.offset); err != nil {
		return fmt.Errorf("write wal frame: %w", err)
	}
	w.cur = next
	return nil
}

// newWALHeader returns the header of the first WAL of a database, whose
// checkpoint sequence number is 0.
func newWALHeader(pageSize int, salt1, salt2 uint32, bigEndian bool) walHeader {
	h := walHeader{pageSize: pageSize, salt1: salt1, salt2: salt2, bigEndian: bigEndian}
	magic := uint32(walMagic)
	if h.bigEndian {
		magic |= 1
	}
	b := h.raw[:]
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], walVersion)
	binary.BigEndian.PutUint32(b[8:], uint32(pageSize))
	binary.BigEndian.PutUint32(b[16:], salt1)
	binary.BigEndian.PutUint32(b[20:], salt2)
	h.sum1, h.sum2 = h.checksum(0, 0, b[:WALHeaderChecksumOffset])
	binary.BigEndian.PutUint32(b[WALHeaderChecksumOffset:], h.sum1)
	binary.BigEndian.PutUint32(b[WALHeaderChecksumOffset+4:], h.sum2)
	return h
}

// appendFrame appends to b the frame that continues the WAL at the cursor, and
// moves behind it. The header is known and the page has its page size.
func (c *walCursor) appendFrame(b []byte, f walFrame, page []byte) []byte {
	var fh [WALFrameHeaderSize]byte
	binary.BigEndian.PutUint32(fh[:], f.pgno)
	binary.BigEndian.PutUint32(fh[4:], f.commit)
	binary.BigEndian.PutUint32(fh[8:], c.header.salt1)
	binary.BigEndian.PutUint32(fh[12:], c.header.salt2)
	c.sum1, c.sum2 = c.header.checksum(c.sum1, c.sum2, fh[:8])
	c.sum1, c.sum2 = c.header.checksum(c.sum1, c.sum2, page)
	binary.BigEndian.PutUint32(fh[WALFrameHeaderChecksumOffset:], c.sum1)
	binary.BigEndian.PutUint32(fh[WALFrameHeaderChecksumOffset+4:], c.sum2)
	c.offset += int64(c.header.frameSize())
	c.last = fh
	return append(append(b, fh[:]...), page...)
}
