package litestream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"

	"github.com/pierrec/lz4/v4"
)

// snapshotPin holds the database at a position from which a snapshot can be
// completed. While it stands, a checkpoint may rewrite pages of the database
// file, but only to what the WAL of the position's index holds, which a
// restore replays from offset 0. So the file may be read meanwhile.
type snapshotPin struct {
	db      *DB
	session *session
	conn    sqliteConn
	file    *parkedFile
	pos     Pos // captured at least up to the pinned commit
}

// pinSnapshot pins the database, and captures up to the pin. The error matches
// ErrNoGeneration if there is no database yet.
func (db *DB) pinSnapshot(ctx context.Context) (p *snapshotPin, err error) {
	err = db.withSession(ctx, func(s *session) (err error) {
		p, err = db.pin(ctx, s)
		return err
	})
	return p, notCaptured(err)
}

// pinExact is like pinSnapshot, but keeps writers out meanwhile, so that the
// pinned commit is the last one that was captured.
func (db *DB) pinExact(ctx context.Context) (p *snapshotPin, err error) {
	err = db.withSession(ctx, func(s *session) error {
		err := s.keep.excluding(ctx, BusyTimeout, func() (err error) {
			p, err = db.pin(ctx, s)
			return err
		})
		if err != nil && p != nil {
			s.snapshots--
			err = errors.Join(err, p.conn.Close(), p.file.release())
		}
		return err
	})
	return p, notCaptured(err)
}

// notCaptured says in public terms that there is no database yet.
func notCaptured(err error) error {
	if errors.Is(err, errNoDatabase) {
		return fmt.Errorf("%w: %w", ErrNoGeneration, err)
	}
	return err
}

func (db *DB) pin(ctx context.Context, s *session) (_ *snapshotPin, err error) {
	file, err := parkDatabase(db.real)
	if err != nil {
		return nil, err
	}
	if file != s.file {
		return nil, errors.Join(errFileReplaced, file.release())
	}
	conn, err := s.keep.open(ctx)
	if err == nil {
		err = conn.BeginRead(ctx)
		if err == nil {
			// The index of the position is that of the pin: the WAL restarts
			// under a pin only if the pinned state is that restart's start.
			err = s.capture()
		}
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}
	if err != nil {
		return nil, errors.Join(err, file.release())
	}
	s.snapshots++
	return &snapshotPin{db: db, session: s, conn: conn, file: file, pos: s.capt.pos}, nil
}

// end gives the pin up.
func (p *snapshotPin) end() error {
	p.db.mu.Lock()
	defer p.db.mu.Unlock()
	p.session.snapshots--
	return errors.Join(p.conn.Close(), p.file.release())
}

// snapshotSlots lets one database of the process be read for a snapshot at a
// time. A slow client does not hold a slot: see spool.
var snapshotSlots = make(chan struct{}, 1)

func takeSnapshotSlot(ctx context.Context) error {
	select {
	case snapshotSlots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func releaseSnapshotSlot() { <-snapshotSlots }

// snapshotChunk is how much of the database is read at once, in bytes.
const snapshotChunk = 1 << 20

// snapshotStream is the LZ4-compressed database at a pin, for a client to
// read. The caller closes it, which joins its goroutine.
type snapshotStream struct {
	*spool
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of the goroutine; valid when done is closed
}

// spoolSeq tells the spool files of one process apart.
var spoolSeq atomic.Uint64

// stream begins to read the database when there is a slot. It takes over the
// pin, which it gives up as soon as all bytes have been read.
//
// A replica waits for the slot with the pin: it must not hold up its syncs, and
// it pins within one.
func (p *snapshotPin) stream(ctx context.Context) *snapshotStream {
	return p.start(ctx, func(ctx context.Context, w *spool) error {
		if err := takeSnapshotSlot(ctx); err != nil {
			return err
		}
		defer releaseSnapshotSlot()
		return p.compress(ctx, w)
	})
}

// streamInSlot is stream for who has the slot, and takes that over too.
func (p *snapshotPin) streamInSlot(ctx context.Context) *snapshotStream {
	return p.start(ctx, func(ctx context.Context, w *spool) error {
		defer releaseSnapshotSlot()
		return p.compress(ctx, w)
	})
}

// start runs read, which writes to the stream, and then ends the pin.
func (p *snapshotPin) start(ctx context.Context, read func(context.Context, *spool) error) *snapshotStream {
	ctx, cancel := context.WithCancel(ctx)
	name := filepath.Join(string(p.db.meta), fmt.Sprintf("snapshot-%d%s", spoolSeq.Add(1), atomicfile.TempExt))
	st := &snapshotStream{spool: newSpool(p.db.fs, name), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(st.done)
		err := read(ctx, st.spool)
		st.err = p.end()
		st.spool.finish(errors.Join(err, st.err))
	}()
	return st
}

// Close ends the stream, wherever it is.
func (st *snapshotStream) Close() error {
	st.cancel()
	<-st.done
	return errors.Join(st.err, st.spool.remove())
}

func (p *snapshotPin) compress(ctx context.Context, w *spool) error {
	bw := bufio.NewWriterSize(writerFunc(func(b []byte) (int, error) { return w.write(ctx, b) }), spoolChunk)
	zw := lz4.NewWriter(bw)
	if err := zw.Apply(
		lz4.BlockSizeOption(lz4.Block256Kb),
		lz4.BlockChecksumOption(true),
		lz4.ChecksumOption(false),
		lz4.ConcurrencyOption(runtime.GOMAXPROCS(0)),
	); err != nil {
		return err
	}
	err := copyDatabase(ctx, zw, p.file.f)
	return errors.Join(err, zw.Close(), bw.Flush())
}

// copyDatabase copies whole pages of the file as long as it is now, or
// shorter if a checkpoint cuts it meanwhile.
func copyDatabase(ctx context.Context, w io.Writer, f *os.File) error {
	hdr, err := readDatabaseHeader(f)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	buf := make([]byte, snapshotChunk)
	for off, size := int64(0), info.Size(); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), size-off)]
		n, err := f.ReadAt(b, off)
		if err != nil && err != io.EOF {
			return err
		}
		eof := n < len(b)
		n -= n % hdr.pageSize
		if _, err := w.Write(b[:n]); err != nil {
			return err
		}
		if off += int64(n); eof || n == 0 {
			return nil
		}
	}
	return nil
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

const (
	spoolMemory   = 4 << 20         // bytes held in memory for a client
	spoolChunk    = 128 << 10       // bytes handed over at once
	spoolPatience = 1 * time.Second // for which a client may be slower than the disk
)

var errStreamClosed = errors.New("read of a closed snapshot")

// spool is a pipe whose writer does not wait for long: when the reader has
// kept it waiting for its patience in all, the rest goes to a file. So a slow
// upload does not hold the database's pin.
type spool struct {
	fs   fsys.FS
	name string // of the file, if one is needed

	wakeReader chan struct{}
	wakeWriter chan struct{}
	patience   time.Duration // left to the writer

	mu struct {
		sync.Mutex // leaf but for the file's own I/O; guards:
		queue      [][]byte
		queued     int // bytes in queue
		file       fsys.File
		written    int64 // bytes in the file
		read       int64 // of these, by the reader
		done       bool
		err        error // with done: what the reader gets at the end
		ended      bool  // the reader got io.EOF
	}
}

func newSpool(fsy fsys.FS, name string) *spool {
	return &spool{fs: fsy, name: name, patience: spoolPatience, wakeReader: make(chan struct{}, 1), wakeWriter: make(chan struct{}, 1)}
}

// write takes a copy of b.
func (s *spool) write(ctx context.Context, b []byte) (int, error) {
	for {
		ok, err := s.put(b)
		if err != nil {
			return 0, err
		}
		if ok {
			wake(s.wakeReader)
			return len(b), nil
		}
		began := time.Now()
		timer := time.NewTimer(s.patience)
		select {
		case <-s.wakeWriter:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, ctx.Err()
		}
		timer.Stop()
		s.patience -= time.Since(began)
	}
}

// put stores b if there is room in memory, or in the file once patience is
// over.
func (s *spool) put(b []byte) (ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.file == nil && s.mu.queued < spoolMemory {
		s.mu.queue = append(s.mu.queue, append([]byte(nil), b...))
		s.mu.queued += len(b)
		return true, nil
	}
	if s.mu.file == nil {
		if s.patience > 0 {
			return false, nil
		}
		if s.mu.file, err = s.fs.OpenFile(s.name, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600); err != nil {
			s.mu.file = nil
			return false, fmt.Errorf("spool snapshot: %w", err)
		}
	}
	n, err := s.mu.file.WriteAt(b, s.mu.written)
	s.mu.written += int64(n)
	if err != nil {
		return false, fmt.Errorf("spool snapshot: %w", err)
	}
	return true, nil
}

// finish ends the stream with err, or with io.EOF if that is nil.
func (s *spool) finish(err error) {
	if err == nil {
		err = io.EOF
	}
	s.mu.Lock()
	s.mu.done, s.mu.err = true, err
	s.mu.Unlock()
	wake(s.wakeReader)
}

// Read returns the next bytes, waiting for the writer.
func (s *spool) Read(b []byte) (int, error) {
	for {
		n, err := s.take(b)
		if n > 0 || err != nil || len(b) == 0 {
			wake(s.wakeWriter)
			return n, err
		}
		<-s.wakeReader
	}
}

func (s *spool) take(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.queue) > 0 {
		n := copy(b, s.mu.queue[0])
		s.mu.queued -= n
		if s.mu.queue[0] = s.mu.queue[0][n:]; len(s.mu.queue[0]) == 0 {
			s.mu.queue = s.mu.queue[1:]
		}
		return n, nil
	}
	if left := s.mu.written - s.mu.read; left > 0 {
		n, err := s.mu.file.ReadAt(b[:min(int64(len(b)), left)], s.mu.read)
		s.mu.read += int64(n)
		if n > 0 {
			err = nil
		}
		return n, err
	}
	if s.mu.done {
		s.mu.ended = s.mu.err == io.EOF
		return 0, s.mu.err
	}
	return 0, nil
}

// ended reports whether the reader got everything, and io.EOF.
func (s *spool) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.ended
}

// remove drops what was not read, after the writer has ended. A client may
// still be reading: it gets an error.
func (s *spool) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.queue, s.mu.queued, s.mu.read = nil, 0, s.mu.written
	s.mu.done, s.mu.err = true, errStreamClosed
	wake(s.wakeReader)
	if s.mu.file == nil {
		return nil
	}
	err := errors.Join(s.mu.file.Close(), s.fs.Remove(s.name))
	s.mu.file = nil
	return err
}
