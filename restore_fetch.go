package litestream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// readAheadSize is how many compressed bytes of a file are fetched before its
// turn comes.
const readAheadSize = 256 << 10

var readAheadBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, readAheadSize) }}

// fetchError reports that a planned file could not be fetched, as opposed to
// one whose content is wrong.
type fetchError struct {
	name string
	err  error
}

func (e *fetchError) Error() string { return fmt.Sprintf("read %s: %v", e.name, e.err) }
func (e *fetchError) Unwrap() error { return e.err }

// vanished reports whether err is about a file that was listed but is gone.
func vanished(err error) bool {
	var fetch *fetchError
	return errors.As(err, &fetch) && errors.Is(fetch.err, fs.ErrNotExist)
}

// fetcher reads files of a replica, not more at a time than it has slots.
type fetcher struct {
	client ReplicaClient
	slots  chan struct{}
	meter  *progressMeter
}

func newFetcher(client ReplicaClient, parallelism int, meter *progressMeter) *fetcher {
	return &fetcher{client: client, slots: make(chan struct{}, parallelism), meter: meter}
}

func (f *fetcher) acquire(ctx context.Context) error {
	select {
	case f.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// snapshot opens a snapshot. It waits for a slot.
func (f *fetcher) snapshot(ctx context.Context, generation string, index int) (*fetchedFile, error) {
	if err := f.acquire(ctx); err != nil {
		return nil, err
	}
	return f.open(ctx, Pos{Generation: generation, Index: index}, snapshotName(generation, index), func() (io.ReadCloser, error) {
		return f.client.SnapshotReader(ctx, generation, index)
	})
}

// segments opens segments ahead of the caller, who closes what next returns.
// Slots are taken in order, so the segment that a caller waits for has one.
func (f *fetcher) segments(ctx context.Context, a []WALSegmentInfo) *ahead[*fetchedFile] {
	return startAhead(ctx, aheadJobs[*fetchedFile]{
		n:     len(a),
		width: cap(f.slots),
		gate:  f.acquire,
		run: func(ctx context.Context, i int) (*fetchedFile, error) {
			pos := a[i].Pos()
			return f.open(ctx, pos, segmentName(pos), func() (io.ReadCloser, error) {
				return f.client.WALSegmentReader(ctx, pos)
			})
		},
		discard: (*fetchedFile).Close,
	})
}

// open opens a file in a slot that it owns, and reads its beginning.
func (f *fetcher) open(ctx context.Context, pos Pos, name string, open func() (io.ReadCloser, error)) (*fetchedFile, error) {
	rc, err := open()
	if err != nil {
		<-f.slots
		return nil, &fetchError{name, err}
	}
	file := &fetchedFile{name: name, pos: pos, ctx: ctx, fetcher: f, rc: rc}
	file.zr = newFrameReader(compressedFile{file})
	file.buf = readAheadBuffers.Get().(*bufio.Reader)
	file.buf.Reset(meteredReader{file})
	if _, err := file.buf.Peek(readAheadSize); err != nil && err != io.EOF {
		file.Close() // the error that matters is err
		return nil, &fetchError{name, err}
	}
	return file, nil
}

// fetchedFile is one open file of a replica. Read returns decompressed bytes.
// It occupies a slot until it is closed.
type fetchedFile struct {
	name    string
	pos     Pos // at which its content begins
	ctx     context.Context
	fetcher *fetcher
	rc      io.ReadCloser
	buf     *bufio.Reader
	zr      *frameReader
	readErr error // of the client, not the decompressor
}

// Read decompresses. Behind the end of the one frame it returns io.EOF; any
// other error says whether the client failed or the content is wrong.
func (f *fetchedFile) Read(p []byte) (int, error) {
	n, err := f.zr.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case f.readErr != nil:
		return n, &fetchError{f.name, f.readErr}
	default:
		return n, f.corrupt(f.pos.Offset, err)
	}
}

// corrupt reports that the content is wrong at an offset of the WAL index or
// the snapshot.
func (f *fetchedFile) corrupt(offset int64, err error) error {
	pos := f.pos
	pos.Offset = offset
	return &ChecksumError{Path: f.name, Pos: pos, Err: err}
}

func (f *fetchedFile) Close() error {
	if err := f.zr.Close(); err != nil {
		return &fetchError{f.name, err}
	}
	return nil
}

// compressedFile is the side of a fetchedFile that its decompressor reads.
type compressedFile struct{ f *fetchedFile }

func (c compressedFile) Read(p []byte) (int, error) { return c.f.buf.Read(p) }

func (c compressedFile) Close() error {
	c.f.buf.Reset(nil)
	readAheadBuffers.Put(c.f.buf)
	c.f.buf = nil
	err := c.f.rc.Close()
	<-c.f.fetcher.slots
	return err
}

// meteredReader reads from the client: it counts, and ends with the context.
type meteredReader struct{ f *fetchedFile }

func (r meteredReader) Read(p []byte) (n int, err error) {
	if err = r.f.ctx.Err(); err == nil {
		n, err = r.f.rc.Read(p)
		r.f.fetcher.meter.add(int64(n))
	}
	if err != nil && err != io.EOF {
		r.f.readErr = err
	}
	return n, err
}
