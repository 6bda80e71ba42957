package litestream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// WALNotFoundError reports a WAL index that a replica does not have, or not
// from its beginning.
type WALNotFoundError struct {
	Generation string
	Index      int
}

func (e *WALNotFoundError) Error() string {
	return fmt.Sprintf("wal not found: generation %s, index %s", e.Generation, FormatIndex(e.Index))
}

// WALDownloader downloads the WAL indexes of a generation as whole WAL files,
// ahead of its caller. Each is verified as in a restore. It is not safe for
// concurrent use. The caller closes it, and removes the files that Next
// returned.
type WALDownloader struct {
	// Mode is the permissions of the WAL files, before umask. 0 means 0600.
	Mode os.FileMode

	// Uid and Gid are as in [RestoreOptions].
	Uid, Gid int

	// Parallelism is how many files of the replica are read, and how many WAL
	// files are downloaded ahead, at a time. 0 means
	// DefaultRestoreParallelism.
	Parallelism int

	fsys               fsys.FS
	client             ReplicaClient
	prefix             string
	generation         string
	minIndex, maxIndex int

	fetcher *fetcher
	files   *ahead[string] // nil before the first Next
	n       int
	err     error // of Next, for good
	closed  bool
}

// NewWALDownloader downloads the indexes from minIndex to maxIndex, both
// included, to files named PREFIX-INDEX.wal. A file that has such a name is
// replaced.
func NewWALDownloader(client ReplicaClient, prefix string, generation string, minIndex, maxIndex int) *WALDownloader {
	return &WALDownloader{
		Mode:        0o600,
		Parallelism: DefaultRestoreParallelism,
		fsys:        fsys.OS,
		client:      client,
		prefix:      prefix,
		generation:  generation,
		minIndex:    minIndex,
		maxIndex:    maxIndex,
	}
}

// N returns how many WAL files Next returned.
func (d *WALDownloader) N() int { return d.n }

// Next waits for the next WAL file, in order of the indexes. Behind the last it
// returns io.EOF, and *WALNotFoundError where the replica has no such index.
// When ctx ends first, a later call can still return the file; any other error
// is final. Downloads go on between the calls, until Close.
func (d *WALDownloader) Next(ctx context.Context) (index int, path string, err error) {
	if d.err != nil {
		return 0, "", d.err
	}
	if d.closed {
		return 0, "", errors.New("download wal: downloader is closed")
	}
	if err := ctx.Err(); err != nil {
		return 0, "", err
	}
	if d.files == nil {
		if err := d.start(ctx); err != nil {
			return 0, "", fmt.Errorf("download wal: %w", err)
		}
	}
	path, err = d.files.next(ctx)
	if err == io.EOF {
		d.err = err
		return 0, "", err
	}
	if err != nil {
		err = fmt.Errorf("download wal: %w", err)
		if d.files.failed != nil {
			d.err = err
		}
		return 0, "", err
	}
	index = d.minIndex + d.n
	d.n++
	return index, path, nil
}

// start lists the segments and starts the downloads, which Close joins. They
// outlive ctx.
func (d *WALDownloader) start(ctx context.Context) error {
	switch {
	case isNil(d.client):
		return errNoClient
	case !IsGenerationName(d.generation):
		return fmt.Errorf("invalid generation %q", d.generation)
	case d.Parallelism < 0:
		return fmt.Errorf("option Parallelism is %d; it must not be negative", d.Parallelism)
	case d.minIndex < 0:
		return fmt.Errorf("invalid index %d", d.minIndex)
	}
	segments, err := listWALSegments(ctx, d.client, d.generation)
	if err != nil {
		return err
	}
	byIndex := make(map[int][]WALSegmentInfo)
	for _, group := range segmentsByIndex(compactSegments(segments)) {
		byIndex[group[0].Index] = group
	}
	parallelism := d.Parallelism
	if parallelism == 0 {
		parallelism = DefaultRestoreParallelism
	}
	// Up to the first missing index, which is the last job.
	n := 0
	for n <= d.maxIndex-d.minIndex {
		n++
		if len(byIndex[d.minIndex+n-1]) == 0 {
			break
		}
	}
	d.fetcher = newFetcher(d.client, parallelism, nil)
	d.files = startAhead(context.WithoutCancel(ctx), aheadJobs[string]{
		n:     n,
		width: parallelism,
		run: func(ctx context.Context, i int) (string, error) {
			return d.download(ctx, d.minIndex+i, byIndex[d.minIndex+i])
		},
		discard: d.fsys.Remove,
	})
	return nil
}

// download writes one WAL file and returns its path.
func (d *WALDownloader) download(ctx context.Context, index int, segments []WALSegmentInfo) (string, error) {
	if len(segments) == 0 || segments[0].Offset != 0 {
		return "", &WALNotFoundError{Generation: d.generation, Index: index}
	}
	mode := d.Mode
	if mode == 0 {
		mode = 0o600
	}
	path := d.prefix + "-" + FormatIndex(index) + WALExt
	opt := atomicfile.Options{Mode: mode, Uid: ownerID(d.Uid), Gid: ownerID(d.Gid)}
	err := atomicfile.Write(d.fsys, path, opt, func(f fsys.File) error {
		m := newWALFileImage(f, walFileOutput)
		if err := m.load(ctx, d.fetcher, segments); err != nil {
			return errors.Join(err, m.release())
		}
		return errors.Join(m.flush(), m.release())
	})
	if err != nil {
		return "", err
	}
	return path, nil
}

// Close ends the downloads, waits for them, and removes the files that Next did
// not return. It returns the error of Next, other than io.EOF. It may be called
// twice.
func (d *WALDownloader) Close() error {
	if !d.closed {
		d.closed = true
		if d.files != nil {
			if err := d.files.close(); err != nil {
				d.err = errors.Join(d.err, err)
			}
		}
	}
	if d.err == io.EOF {
		return nil
	}
	return d.err
}
