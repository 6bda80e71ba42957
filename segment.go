package litestream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/pierrec/lz4/v4"
)

// A segment is one LZ4 frame with independent 64 KiB blocks, block checksums,
// no content checksum and no content size. So every segment begins with the
// same 7 bytes and ends in 4 zero bytes, and segments are joined without
// recompressing: the header once, all blocks, the end mark once.
//
//	+--------------+---------+-----+---------+-------------+
//	| header       | block   | ... | block   | end mark    |
//	| 7 bytes      |         |     |         | 00 00 00 00 |
//	+--------------+---------+-----+---------+-------------+
const (
	segmentHeader    = "\x04\x22\x4d\x18\x70\x40\xad"
	segmentEndMark   = "\x00\x00\x00\x00"
	segmentBlockSize = 64 << 10
	segmentOverhead  = int64(len(segmentHeader) + len(segmentEndMark))
)

// errNotJoinable reports a frame that newSegmentWriter did not write.
var errNotJoinable = errors.New("segment is not in the form that can be joined")

var segmentWriters = sync.Pool{New: func() any {
	w := lz4.NewWriter(nil)
	if err := w.Apply(
		lz4.BlockSizeOption(lz4.Block64Kb),
		lz4.BlockChecksumOption(true),
		lz4.ChecksumOption(false),
		lz4.ConcurrencyOption(1),
	); err != nil {
		panic(err) // constant options that the package accepts
	}
	return w
}}

// newSegmentWriter returns a pooled compressor that writes a segment to w.
// Give it back with releaseSegmentWriter.
func newSegmentWriter(w io.Writer) *lz4.Writer {
	zw := segmentWriters.Get().(*lz4.Writer)
	zw.Reset(w)
	return zw
}

func releaseSegmentWriter(zw *lz4.Writer) {
	zw.Reset(nil)
	segmentWriters.Put(zw)
}

var frameReaders = sync.Pool{New: func() any { return lz4.NewReader(nil) }}

// frameReader decompresses one LZ4 file of a replica or of the shadow WAL. A
// body that ends before the frame's end mark is io.ErrUnexpectedEOF, also an
// empty one.
type frameReader struct {
	zr *lz4.Reader
	rc io.Closer
	n  int64 // decompressed bytes read
}

// newFrameReader takes ownership of rc: Close closes it.
func newFrameReader(rc io.ReadCloser) *frameReader {
	zr := frameReaders.Get().(*lz4.Reader)
	zr.Reset(rc)
	return &frameReader{zr: zr, rc: rc}
}

func (r *frameReader) Read(p []byte) (n int, err error) {
	if r.zr == nil {
		return 0, errors.New("read of a closed segment")
	}
	n, err = r.zr.Read(p)
	r.n += int64(n)
	if err == io.EOF && r.n == 0 {
		// The decoder takes no bytes for an empty stream. No file of ours is.
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *frameReader) Close() error {
	if r.zr == nil {
		return nil
	}
	r.zr.Reset(nil)
	frameReaders.Put(r.zr)
	r.zr = nil
	return r.rc.Close()
}

// segmentSource is one piece of a joined segment: size compressed bytes that
// open returns.
type segmentSource struct {
	size int64
	open func() (io.ReadCloser, error)
}

// joinedSegment reads several segments as one. It holds at most one source
// open at a time.
type joinedSegment struct {
	sources []segmentSource
	cur     io.ReadCloser
	left    int64     // block bytes of cur not read yet
	edge    io.Reader // header or end mark being read
	err     error
}

// joinSegments returns the segment that decompresses to the concatenation of
// the sources, of which there is at least one. The caller closes it.
func joinSegments(sources []segmentSource) *joinedSegment {
	if len(sources) == 0 {
		return &joinedSegment{err: errors.New("no segments to join")}
	}
	return &joinedSegment{sources: sources, edge: bytes.NewReader([]byte(segmentHeader))}
}

func (j *joinedSegment) Read(p []byte) (n int, err error) {
	for j.err == nil {
		switch {
		case j.edge != nil:
			if n, _ = j.edge.Read(p); n > 0 || len(p) == 0 {
				return n, nil
			}
			j.edge = nil
			j.err = j.nextSource()
		case j.left > 0:
			n, err = j.cur.Read(p[:min(int64(len(p)), j.left)])
			j.left -= int64(n)
			if err == io.EOF && j.left > 0 {
				err = io.ErrUnexpectedEOF
			} else if err == io.EOF {
				err = nil
			}
			j.err = err
			if n > 0 || len(p) == 0 {
				return n, nil
			}
		default:
			j.err = j.endSource()
		}
	}
	return 0, j.err
}

// nextSource opens the next source and checks its header; behind the last one
// it returns io.EOF, since the end mark has been read.
func (j *joinedSegment) nextSource() (err error) {
	if len(j.sources) == 0 {
		return io.EOF
	}
	src := j.sources[0]
	if src.size < segmentOverhead {
		return fmt.Errorf("%w: %d bytes", errNotJoinable, src.size)
	}
	if j.cur, err = src.open(); err != nil {
		return err
	}
	var hdr [len(segmentHeader)]byte
	if n, err := io.ReadFull(j.cur, hdr[:]); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("segment header: %w", err)
	} else if string(hdr[:n]) != segmentHeader {
		return errNotJoinable
	}
	j.left = src.size - segmentOverhead
	return nil
}

// endSource checks the end mark of the current source and moves to the next.
func (j *joinedSegment) endSource() error {
	var mark [len(segmentEndMark) + 1]byte
	n, err := io.ReadFull(j.cur, mark[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	} else if string(mark[:n]) != segmentEndMark {
		return errNotJoinable
	}
	err = j.cur.Close()
	j.cur = nil
	if err != nil {
		return err
	}
	if j.sources = j.sources[1:]; len(j.sources) > 0 {
		return j.nextSource()
	}
	j.edge = bytes.NewReader([]byte(segmentEndMark))
	return nil
}

// readError returns why reading ended: io.EOF if all was read, nil if the
// reader went away before the end.
func (j *joinedSegment) readError() error { return j.err }

// isDamage reports whether err, of reading a joined segment, says that what
// was stored is no longer there. Trying again does not help.
func isDamage(err error) bool {
	return errors.Is(err, errNotJoinable) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrNotExist)
}

func (j *joinedSegment) Close() error {
	if j.err == nil {
		j.err = errors.New("read of a closed segment")
	}
	if j.cur == nil {
		return nil
	}
	err := j.cur.Close()
	j.cur = nil
	return err
}
