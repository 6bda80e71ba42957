// Package fileclient replicates to a directory of the file system: another
// disk, a network mount, or a temporary directory in a test.
//
//	PATH/generations/GENERATION/snapshots/INDEX.snapshot.lz4
//	PATH/generations/GENERATION/wal/INDEX/OFFSET.wal.lz4
//
// GENERATION, INDEX and OFFSET are 16 lowercase hex digits.
//
// # Durability
//
// A write goes to a file whose name ends in .tmp, is synced, takes its name by
// a rename, and the directory is synced; the names of new directories are made
// durable before. So a write that returned nil survives a power loss, and a
// reader sees a whole file or none. A write that failed removes its unfinished
// file. Deletes are durable too. What a replica goes on behind, or retention
// relies on, is made durable when it is listed: its writer may have been killed
// just before it was.
//
// A crash leaves an unfinished file behind, which no listing shows. A client
// removes those of other processes that nobody touched for five minutes when
// it first writes into a directory, and all of other processes with the last
// segment of a WAL index.
//
// # Concurrency
//
// Any number of goroutines, clients and processes may read. Writers are safe
// beside each other, but what two databases write to one path is of no use:
// give each database a path of its own.
//
// # Litestream v0.3
//
// A replica that Litestream v0.3 wrote is read as well. Its indexes and
// offsets have 8 digits, and its segments lie side by side:
//
//	PATH/generations/GENERATION/snapshots/INDEX.snapshot.lz4
//	PATH/generations/GENERATION/wal/INDEX_OFFSET.wal.lz4
package fileclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"example.com/litestream"
	"example.com/litestream/internal/atomicfile"
	"example.com/litestream/internal/fsys"
)

// FileReplicaClientType is what [FileReplicaClient.Type] returns.
const FileReplicaClientType = "file"

// FileReplicaClient stores a replica in a directory. Construct it with
// [NewFileReplicaClient] and set its fields before the first call; its methods
// are then safe for concurrent use.
type FileReplicaClient struct {
	// Permissions of new files (default 0600) and directories (default 0700),
	// before the process's umask. What exists keeps its own.
	FileMode os.FileMode
	DirMode  os.FileMode

	// Owner of new files and directories. The default, -1, leaves that of the
	// process. Setting another needs the privilege to do so.
	Uid, Gid int

	path string
	fs   fsys.FS
	dirs directories
}

var _ litestream.ReplicaClient = (*FileReplicaClient)(nil)

// NewFileReplicaClient returns a client that stores its replica in the
// directory path, which the first write creates. A relative path is resolved
// at each call.
func NewFileReplicaClient(path string) *FileReplicaClient {
	return &FileReplicaClient{
		FileMode: 0o600,
		DirMode:  0o700,
		Uid:      -1,
		Gid:      -1,
		path:     path,
		fs:       fsys.OS,
	}
}

// Type returns "file".
func (c *FileReplicaClient) Type() string { return FileReplicaClientType }

// Path returns the directory that holds the replica.
func (c *FileReplicaClient) Path() string { return c.path }

// GenerationsDir returns the directory that holds all generations.
func (c *FileReplicaClient) GenerationsDir() (string, error) {
	if c.path == "" {
		return "", errors.New("file replica has no path")
	}
	return filepath.Join(c.path, "generations"), nil
}

// GenerationDir returns the directory of a generation.
func (c *FileReplicaClient) GenerationDir(generation string) (string, error) {
	dir, err := c.GenerationsDir()
	if err != nil {
		return "", err
	}
	if !litestream.IsGenerationName(generation) {
		return "", fmt.Errorf("generation %q: want %d lowercase hex digits", generation, litestream.GenerationNameLen)
	}
	return filepath.Join(dir, generation), nil
}

// SnapshotsDir returns the directory of a generation's snapshots.
func (c *FileReplicaClient) SnapshotsDir(generation string) (string, error) {
	dir, err := c.GenerationDir(generation)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "snapshots"), nil
}

// SnapshotPath returns the path of the LZ4-compressed snapshot of a WAL index.
func (c *FileReplicaClient) SnapshotPath(generation string, index int) (string, error) {
	dir, err := c.SnapshotsDir(generation)
	if err != nil {
		return "", err
	}
	if index < 0 {
		return "", fmt.Errorf("snapshot index %d is negative", index)
	}
	return filepath.Join(dir, litestream.FormatIndex(index)+litestream.SnapshotExt), nil
}

// WALDir returns the directory of a generation's WAL indexes.
func (c *FileReplicaClient) WALDir(generation string) (string, error) {
	dir, err := c.GenerationDir(generation)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, litestream.WALDirName), nil
}

// WALSegmentPath returns the path of the LZ4-compressed WAL segment that
// begins at offset, in bytes.
func (c *FileReplicaClient) WALSegmentPath(generation string, index int, offset int64) (string, error) {
	dir, err := c.WALDir(generation)
	if err != nil {
		return "", err
	}
	if index < 0 {
		return "", fmt.Errorf("wal index %d is negative", index)
	}
	if offset < 0 {
		return "", fmt.Errorf("wal offset %d is negative", offset)
	}
	return filepath.Join(dir, litestream.FormatIndex(index), litestream.FormatOffset(offset)+litestream.WALSegmentExt), nil
}

// WriteSnapshot stores what it reads from rd, LZ4-compressed data, as the
// snapshot of index. It looks at ctx before each read and before it publishes.
func (c *FileReplicaClient) WriteSnapshot(ctx context.Context, generation string, index int, rd io.Reader) (info litestream.SnapshotInfo, err error) {
	name, err := c.SnapshotPath(generation, index)
	if err != nil {
		return info, fmt.Errorf("write snapshot: %w", err)
	}
	size, modTime, err := c.write(ctx, name, rd)
	if err != nil {
		return info, fmt.Errorf("write snapshot %s: %w", name, err)
	}
	return litestream.SnapshotInfo{Generation: generation, Index: index, Size: size, CreatedAt: modTime}, nil
}

// WriteWALSegment stores what it reads from rd, LZ4-compressed data, as the
// segment that begins at pos. It looks at ctx before each read and before it
// publishes.
func (c *FileReplicaClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, rd io.Reader) (info litestream.WALSegmentInfo, err error) {
	name, err := c.WALSegmentPath(pos.Generation, pos.Index, pos.Offset)
	if err != nil {
		return info, fmt.Errorf("write wal segment: %w", err)
	}
	size, modTime, err := c.write(ctx, name, rd)
	if err != nil {
		return info, fmt.Errorf("write wal segment %s: %w", name, err)
	}
	return litestream.WALSegmentInfo{
		Generation: pos.Generation, Index: pos.Index, Offset: pos.Offset, Size: size, CreatedAt: modTime,
	}, nil
}

// SnapshotReader opens a snapshot.
func (c *FileReplicaClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	name, err := c.SnapshotPath(generation, index)
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	rc, err := c.open(ctx, name, legacySnapshotPath(name, index))
	if err != nil {
		return nil, fmt.Errorf("read snapshot %s: %w", name, err)
	}
	return rc, nil
}

// WALSegmentReader opens the segment that begins at pos.
func (c *FileReplicaClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	name, err := c.WALSegmentPath(pos.Generation, pos.Index, pos.Offset)
	if err != nil {
		return nil, fmt.Errorf("read wal segment: %w", err)
	}
	rc, err := c.open(ctx, name, legacySegmentPath(name, pos.Index, pos.Offset))
	if err != nil {
		return nil, fmt.Errorf("read wal segment %s: %w", name, err)
	}
	return rc, nil
}

// open opens name, or what v0.3 called it.
func (c *FileReplicaClient) open(ctx context.Context, name, legacy string) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := c.openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		old, oldErr := c.openRegular(legacy)
		if !errors.Is(oldErr, fs.ErrNotExist) {
			f, err = old, oldErr
		}
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openRegular opens a file for reading. Opening something else could wait for
// ever: a named pipe does, for its writer.
func (c *FileReplicaClient) openRegular(name string) (fsys.File, error) {
	info, err := c.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("is not a regular file")}
	}
	return c.fs.OpenFile(name, os.O_RDONLY, 0)
}

// maxAttempts bounds how often an operation starts over because directories
// were made or removed at the same time.
const maxAttempts = 16

// write replaces the file name by what it reads from rd and returns the file's
// size and modification time.
func (c *FileReplicaClient) write(ctx context.Context, name string, rd io.Reader) (size int64, modTime time.Time, err error) {
	dir := filepath.Dir(name)
	opt := c.options(c.FileMode)
	opt.Durable = true
	for range maxAttempts {
		if err := ctx.Err(); err != nil {
			return 0, time.Time{}, err
		}
		opened := false
		if err = c.ensureDir(dir); err == nil {
			err = atomicfile.Write(c.fs, name, opt, func(f fsys.File) error {
				opened = true
				size, modTime, err = fill(ctx, f, rd)
				return err
			})
		}
		if opened || !errors.Is(err, fs.ErrNotExist) {
			break
		}
		c.dirs.forget() // removed since it was ensured
	}
	if deletedSince(err, dir) {
		return size, modTime, nil
	}
	if err != nil {
		return 0, time.Time{}, err
	}
	// The file may be in a directory that was removed and made again after it
	// was ensured. Then its name is not durable before the next ensureDir.
	return size, modTime, c.ensureDir(dir)
}

// deletedSince reports whether err, of a write to a file in dir, says that the
// directory is gone, though the file had got its name: someone deleted the
// file, and with it the directory, before that could be synced.
func deletedSince(err error, dir string) bool {
	var sync *fs.PathError
	return errors.As(err, &sync) && sync.Path == dir && errors.Is(err, fs.ErrNotExist)
}

var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// fill copies rd to f.
func fill(ctx context.Context, f fsys.File, rd io.Reader) (size int64, modTime time.Time, err error) {
	buf := copyBuffers.Get().(*[64 << 10]byte)
	defer copyBuffers.Put(buf)
	// The struct hides f's ReadFrom, which would not use the buffer.
	size, err = io.CopyBuffer(struct{ io.Writer }{f}, contextReader{ctx, rd}, buf[:])
	if err != nil {
		return 0, time.Time{}, err
	}
	if err := ctx.Err(); err != nil {
		return 0, time.Time{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, time.Time{}, err
	}
	return size, info.ModTime().UTC(), nil
}

// contextReader ends with its context's error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// options returns what new files or directories are given.
func (c *FileReplicaClient) options(mode fs.FileMode) atomicfile.Options {
	return atomicfile.Options{Mode: mode, Uid: c.Uid, Gid: c.Gid}
}
