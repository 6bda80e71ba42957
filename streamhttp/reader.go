package streamhttp

import (
	"errors"
	"fmt"
	"io"

	"example.com/litestream"
)

// reader reads the records from the body of a response. It trusts nothing that
// the server says.
type reader struct {
	watch    *watch
	body     io.ReadCloser
	pageSize int
	maxSize  int64 // of a record
	order    order
	left     int64 // bytes of the current body
	err      error // what ended the stream
}

var errReaderClosed = errors.New("stream reader is closed")

// PageSize returns the page size of the upstream database in bytes.
func (r *reader) PageSize() int { return r.pageSize }

// Next returns the next record's header.
func (r *reader) Next() (*litestream.StreamRecordHeader, error) {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	hdr, err := r.next()
	if err != nil {
		r.err = err
		return nil, err
	}
	r.left = hdr.Size
	return hdr, nil
}

func (r *reader) next() (*litestream.StreamRecordHeader, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.watch.ctx.Err() != nil {
		return nil, r.broken(io.ErrUnexpectedEOF, "before a record")
	}
	var b [litestream.StreamRecordHeaderSize]byte
	if n, err := io.ReadFull(waiting{r}, b[:]); err == io.EOF {
		return nil, io.EOF
	} else if err != nil {
		return nil, r.broken(err, "after %d bytes of a record's header", n)
	}
	hdr := &litestream.StreamRecordHeader{}
	if err := hdr.UnmarshalBinary(b[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if hdr.Size > r.maxSize {
		return nil, fmt.Errorf("%w: record at %s has %d bytes, the limit is %d", ErrProtocol, hdr.Pos(), hdr.Size, r.maxSize)
	}
	if err := r.order.accept(hdr); err != nil {
		return nil, fmt.Errorf("%w: record at %s: %w", ErrProtocol, hdr.Pos(), err)
	}
	return hdr, nil
}

// Read reads from the body of the current record.
func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := waiting{r}.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if r.left == 0 || err == nil {
		return n, nil // a later read sees the error
	}
	r.err = r.broken(err, "%d bytes before the end of a record", r.left)
	return n, r.err
}

// Close ends the stream. Closing again does nothing. It may be called while
// another goroutine is in Next or Read.
func (r *reader) Close() error {
	r.watch.cancel(errReaderClosed)
	_ = r.body.Close() // it has no news: what was not read is not wanted
	return nil
}

// broken returns the error of a stream that ended where it must not.
func (r *reader) broken(err error, format string, a ...any) error {
	where := fmt.Sprintf(format, a...)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	err = r.watch.explain(ErrStreamBroken, err)
	if errors.Is(err, ErrStreamBroken) && !errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", err, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%s: %w", where, err)
}

// waiting reads from the body under the watch.
type waiting struct{ r *reader }

func (w waiting) Read(p []byte) (int, error) {
	w.r.watch.begin()
	n, err := w.r.body.Read(p)
	w.r.watch.end()
	return n, err
}

// order knows which record may come next: at most one snapshot, first; then
// segments without a gap. Only who decompresses a segment knows where it ends,
// so here the offset of the next must only rise.
type order struct {
	last  litestream.Pos // asked for by the client, then of the last record
	begun bool           // a record with a body was seen
	inWAL bool           // it was a segment: the next begins behind last, not at it
}

// accept takes hdr as the next record, or says why it cannot be.
func (o *order) accept(hdr *litestream.StreamRecordHeader) error {
	pos := hdr.Pos()
	if hdr.Type == litestream.StreamRecordTypeSnapshot {
		if o.begun {
			return errors.New("a snapshot that is not the first record")
		}
		if hdr.Size == 0 || hdr.Offset != 0 {
			return errors.New("a snapshot that is empty or has an offset")
		}
		*o = order{last: pos, begun: true}
		return nil
	}
	if hdr.Size == 0 {
		return nil // a heartbeat
	}
	switch {
	case o.last.IsZero():
		return errors.New("a segment without a snapshot before it")
	case pos.Generation != o.last.Generation:
		return fmt.Errorf("a segment of another generation than %s", o.last)
	case !o.mayFollow(pos):
		return fmt.Errorf("a segment that does not follow %s", o.last)
	}
	*o = order{last: pos, begun: true, inWAL: true}
	return nil
}

func (o *order) mayFollow(pos litestream.Pos) bool {
	switch pos.Index {
	case o.last.Index:
		return pos.Offset == o.last.Offset && !o.inWAL || pos.Offset > o.last.Offset && o.inWAL
	case o.last.Index + 1:
		return pos.Offset == 0 && (o.inWAL || o.last.Offset > 0)
	}
	return false
}
