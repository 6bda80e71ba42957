package streamhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"example.com/litestream"
)

// chunkSize is how many bytes of a body are written under one deadline.
const chunkSize = 64 << 10

// minRate is the slowest that a whole record may be taken, in bytes a second.
const minRate = 64 << 10

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// stream sends the records of one upstream to one follower.
type stream struct {
	w         http.ResponseWriter
	conn      *http.ResponseController
	upstream  litestream.StreamClient
	reader    litestream.StreamReader
	heartbeat time.Duration
	timeout   time.Duration
	done      <-chan struct{} // closed when the handler is
	last      litestream.Pos  // where the last record began

	mu struct {
		sync.Mutex           // leaf; guards the connection's write deadline, and:
		deadline   time.Time // of the last write
		end        time.Time // latest deadline, zero if there is none
	}
}

func newStream(h *Handler, w http.ResponseWriter, upstream litestream.StreamClient) *stream {
	return &stream{
		w:         w,
		conn:      http.NewResponseController(w),
		upstream:  upstream,
		heartbeat: orDefault(h.HeartbeatInterval, DefaultHeartbeatInterval),
		timeout:   orDefault(h.WriteTimeout, DefaultWriteTimeout),
		done:      h.done,
	}
}

// open begins to read from the upstream and sends the response's headers. After
// an error nothing has been sent.
func (s *stream) open(ctx context.Context, pos litestream.Pos) (err error) {
	if err := s.rest(); err != nil {
		return fmt.Errorf("this server cannot stream: %w", err)
	}
	reader, err := s.upstream.Stream(ctx, pos)
	if err != nil {
		return err
	}
	if n := reader.PageSize(); !isPageSize(n) {
		return errors.Join(fmt.Errorf("the upstream has page size %d", n), reader.Close())
	}
	s.reader = reader

	header := s.w.Header()
	header.Set("Content-Type", ContentType)
	header.Set(PageSizeHeader, formatPageSize(reader.PageSize()))
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Accel-Buffering", "no") // or a proxy may hold records back
	s.w.WriteHeader(http.StatusOK)
	return nil
}

// received is what Next returned.
type received struct {
	hdr *litestream.StreamRecordHeader
	err error
}

// run sends records until one side ends. It returns nil if the stream ended
// between two records as it should. It closes the reader, and calls cancel,
// which ends ctx, the context that open was called with.
func (s *stream) run(ctx context.Context, cancel context.CancelFunc) (err error) {
	defer func() { err = errors.Join(err, s.reader.Close()) }()
	next, taken := make(chan received), make(chan struct{})
	go s.receive(ctx, next, taken)
	defer func() { // join it
		cancel()
		for range next {
		}
	}()

	if err := s.allow(s.timeout); err != nil {
		return err
	}
	if err := s.flush(); err != nil { // the headers
		return err
	}
	timer := time.NewTimer(s.heartbeat)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return nil
		case <-ctx.Done():
			return nil
		case <-timer.C:
			err = s.sendHeartbeat()
		case rec, ok := <-next:
			if !ok || rec.err != nil && ctx.Err() != nil {
				return nil
			}
			if rec.err != nil {
				return endError(rec.err)
			}
			if err = s.send(rec.hdr); err == nil {
				select {
				case taken <- struct{}{}:
				case <-ctx.Done():
				}
			}
		}
		if err != nil {
			return err
		}
		timer.Reset(s.heartbeat)
	}
}

// receive waits for the records, so that run need not. Between next and taken
// the reader belongs to run. It closes next when ctx ends.
func (s *stream) receive(ctx context.Context, next chan<- received, taken <-chan struct{}) {
	defer close(next)
	for {
		hdr, err := s.reader.Next()
		select {
		case next <- received{hdr, err}:
		case <-ctx.Done():
			return
		}
		select {
		case <-taken:
		case <-ctx.Done():
			return
		}
	}
}

// endError tells the ends of an upstream that belong to its life from those
// that are faults. After the former a follower comes back and goes on.
func endError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, litestream.ErrDBClosed) || errors.Is(err, litestream.ErrGenerationChanged) {
		return nil
	}
	return fmt.Errorf("read from the upstream: %w", err)
}

// send sends a record and its body.
func (s *stream) send(hdr *litestream.StreamRecordHeader) error {
	b, err := hdr.MarshalBinary()
	if err != nil {
		return err
	}
	s.last = hdr.Pos()
	recordEnd := time.Now().Add(s.timeout + time.Duration(hdr.Size/minRate)*time.Second)
	if err := s.write(b, recordEnd); err != nil {
		return err
	}
	chunk := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(chunk)
	for left := hdr.Size; left > 0; {
		n, err := io.ReadAtLeast(s.reader, chunk[:min(left, chunkSize)], 1)
		if err != nil {
			return fmt.Errorf("read the record at %s, %d bytes before its end: %w", hdr.Pos(), left, err)
		}
		if err := s.write(chunk[:n], recordEnd); err != nil {
			return err
		}
		left -= int64(n)
	}
	return s.flush()
}

// sendHeartbeat sends a segment without data, which names what the upstream
// has captured. It sends nothing while there is nothing to name, or when the
// upstream began another generation: then it is about to end the stream. An
// upstream that does not know its position, such as a Client, sends heartbeats
// by itself.
func (s *stream) sendHeartbeat() error {
	db, ok := s.upstream.(interface{ Pos() litestream.Pos })
	if !ok {
		return nil
	}
	pos := db.Pos()
	if pos.IsZero() || !s.last.IsZero() && pos.Generation != s.last.Generation {
		return nil
	}
	hdr := litestream.StreamRecordHeader{
		Type:       litestream.StreamRecordTypeWALSegment,
		Generation: pos.Generation,
		Index:      pos.Index,
		Offset:     pos.Offset,
	}
	b, err := hdr.MarshalBinary()
	if err != nil {
		return err
	}
	if err := s.write(b, time.Now().Add(s.timeout)); err != nil {
		return err
	}
	return s.flush()
}

// write writes b within the timeout, and before the end of its record.
func (s *stream) write(b []byte, recordEnd time.Time) error {
	if err := s.allow(min(s.timeout, time.Until(recordEnd))); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	_, err := s.w.Write(b)
	return s.written(err)
}

// errStalled reports a follower that took too little in its time.
var errStalled = errors.New("the follower is stalled")

func (s *stream) written(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !time.Now().Before(s.mu.deadline) {
		return fmt.Errorf("write: %w: %w", errStalled, err)
	}
	return fmt.Errorf("write: %w", err)
}

// flush sends what was written, under the last deadline.
func (s *stream) flush() error {
	if err := s.written(s.conn.Flush()); err != nil {
		return err
	}
	return s.rest()
}

// rest takes the deadline away until the next write: HTTP/2 resets a stream at
// its deadline even if nothing is being written.
func (s *stream) rest() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn.SetWriteDeadline(s.mu.end)
}

// allow lets writes take d from now on.
func (s *stream) allow(d time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := time.Now().Add(d)
	if end := s.mu.end; !end.IsZero() && t.After(end) {
		t = end
	}
	s.mu.deadline = t
	return s.conn.SetWriteDeadline(t)
}

// hurry ends all writes, also one that is waiting, at t. The caller keeps the
// stream's request from returning.
func (s *stream) hurry(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.deadline, s.mu.end = t, t
	_ = s.conn.SetWriteDeadline(t) // open reported it if it is not supported
}
