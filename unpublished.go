package litestream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// SQLite writes the frames of a transaction, the last of which says that it is
// complete, and then publishes them in the -shm file. A writer that dies in
// between, or whose sync fails, leaves a transaction that looks like any other
// in the file, and is captured, but that SQLite knows nothing of. The next
// writer overwrites it, or restarts the WAL where it began.
//
// So the last transaction that was captured is in doubt, until a connection has
// seen that it is published, or the next one stands behind it. capturer.doubt is
// where it begins, and zero if it is beyond doubt.

// published ends the doubt if SQLite counted at least as many frames as were
// captured, a moment ago and in the same WAL: its header is still there.
func (c *capturer) published(frames int64) (err error) {
	if c.doubt.header.isZero() || frames < c.cursor.frames() {
		return nil
	}
	f, err := c.fs.OpenFile(c.walPath, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("read wal: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var b [WALHeaderSize]byte
	if n, err := f.ReadAt(b[:], 0); n < len(b) {
		return ignoreEOF(err)
	}
	if b == c.cursor.header.raw {
		c.doubt = walCursor{}
	}
	return nil
}

// isOverwritten reports whether the transaction from begun to end no longer
// stands there. If what overwrote it is shorter, its last frame may still be in
// place, and so may any number of its first ones: a transaction that is tried
// again writes the same.
func isOverwritten(f io.ReaderAt, begun, end walCursor) (bool, error) {
	if begun.header.isZero() {
		return false, nil
	}
	buf := chunks.get()
	defer chunks.put(buf)
	frame := int64(begun.header.frameSize())
	scan := newWALScan(begun)
	for scan.tip.offset < end.offset {
		b := buf[:min(maxChunk/frame*frame, end.offset-scan.tip.offset)]
		if n, err := f.ReadAt(b, scan.tip.offset); n < len(b) {
			return true, ignoreEOF(err)
		}
		if valid, _ := scan.feed(b); valid < len(b) {
			return true, nil
		}
	}
	return scan.commit != end || scan.begun != begun, nil
}

// endIsCommitted reports whether the captured index ends where the WAL did that
// restarted. A restart follows when all that SQLite knows of is in the database
// file, and nothing of the next WAL gets there before the pin moves (see
// keeper). So the file has the pages of the last transaction, or that was never
// committed.
func (c *capturer) endIsCommitted() (bool, error) {
	if c.doubt.header.isZero() {
		return true, nil
	}
	ok, err := c.isBackfilled(c.doubt, c.cursor)
	var perr *fs.PathError
	switch {
	case err == nil:
		return ok, nil
	case errors.As(err, &perr) && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("compare the end of wal index %s: %w", FormatIndex(c.pos.Index), err)
	}
	tracef("%s: the end of the wal index cannot be read: %v", c.walPath, err)
	return false, nil
}

// isBackfilled reports whether the database file has what the shadow WAL has
// between two cursors, the last segment's end being the second.
func (c *capturer) isBackfilled(begun, end walCursor) (ok bool, err error) {
	pos, seg, ok := c.shadow.last()
	if !ok {
		return false, fmt.Errorf("shadow wal of %s: %w", c.pos.Truncate(), fs.ErrNotExist)
	}
	rc, err := c.shadow.open(pos)
	if err != nil {
		return false, err
	}
	zr := newFrameReader(rc)
	defer func() { err = errors.Join(err, zr.Close()) }()
	if _, err := io.CopyN(io.Discard, zr, begun.offset-seg.offset); err != nil {
		return false, err
	}
	size := binary.BigEndian.Uint32(end.last[4:]) // of the database, in pages
	frame := make([]byte, end.header.frameSize())
	page := make([]byte, end.header.pageSize)
	other := make(map[uint32]bool) // pages of which the file has not the last version so far
	for at := begun.offset; at < end.offset; at += int64(len(frame)) {
		if _, err := io.ReadFull(zr, frame); err != nil {
			return false, err
		}
		pgno := binary.BigEndian.Uint32(frame)
		if pgno > size {
			continue
		}
		n, err := c.database.ReadAt(page, int64(pgno-1)*int64(len(page)))
		if err != nil && err != io.EOF {
			return false, err
		}
		if n == len(page) && string(page) == string(frame[WALFrameHeaderSize:]) {
			delete(other, pgno)
		} else {
			other[pgno] = true
		}
	}
	return len(other) == 0, nil
}
