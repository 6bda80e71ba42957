package fileclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"example.com/litestream"
	"example.com/litestream/internal/atomicfile"
)

// DeleteGeneration deletes everything of a generation, its snapshots first: a
// generation that a crash left half deleted cannot be mistaken for a whole one.
func (c *FileReplicaClient) DeleteGeneration(ctx context.Context, generation string) error {
	dir, err := c.GenerationDir(generation)
	if err != nil {
		return fmt.Errorf("delete generation: %w", err)
	}
	if err := c.deleteGeneration(ctx, dir); err != nil {
		return fmt.Errorf("delete generation %s: %w", dir, err)
	}
	return nil
}

func (c *FileReplicaClient) deleteGeneration(ctx context.Context, dir string) error {
	if err := c.removeTree(ctx, filepath.Join(dir, "snapshots")); err != nil {
		return err
	}
	if err := c.syncDir(dir); err != nil {
		return err
	}
	if err := c.removeTree(ctx, dir); err != nil {
		return err
	}
	return c.syncDir(filepath.Dir(dir))
}

// removeTree removes name and everything below it. It follows no symbolic link.
func (c *FileReplicaClient) removeTree(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := c.fs.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if !info.IsDir() {
		return c.remove(name)
	}
	for range maxAttempts {
		ents, err := c.fs.ReadDir(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		for _, ent := range ents {
			if err := c.removeTree(ctx, filepath.Join(name, ent.Name())); err != nil {
				return err
			}
		}
		if gone, err := c.removeDir(name); gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: files appear while it is deleted", name)
}

// DeleteSnapshot deletes a snapshot.
func (c *FileReplicaClient) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	name, err := c.SnapshotPath(generation, index)
	if err != nil {
		return fmt.Errorf("delete snapshot: %w", err)
	}
	if err = ctx.Err(); err == nil {
		err = c.remove(name)
	}
	if err == nil {
		err = c.remove(legacySnapshotPath(name, index))
	}
	if err == nil {
		err = c.syncDir(filepath.Dir(name))
	}
	if err != nil {
		return fmt.Errorf("delete snapshot %s: %w", name, err)
	}
	return nil
}

// DeleteWALSegments deletes segments in the order of a, and the directories of
// WAL indexes that have none left. If one of a is invalid it deletes nothing.
func (c *FileReplicaClient) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	names := make([]string, len(a))
	for i, pos := range a {
		var err error
		if names[i], err = c.WALSegmentPath(pos.Generation, pos.Index, pos.Offset); err != nil {
			return fmt.Errorf("delete wal segments: %w", err)
		}
	}
	indexDirs, walDirs := map[string]bool{}, map[string]bool{}
	for i, name := range names {
		err := ctx.Err()
		if err == nil {
			err = c.remove(name)
		}
		if err == nil {
			err = c.remove(legacySegmentPath(name, a[i].Index, a[i].Offset))
		}
		if err != nil {
			return fmt.Errorf("delete wal segment %s: %w", name, err)
		}
		dir := filepath.Dir(name)
		indexDirs[dir], walDirs[filepath.Dir(dir)] = true, true
	}
	for dir := range indexDirs {
		if err := c.finishIndex(dir); err != nil {
			return fmt.Errorf("delete wal segments in %s: %w", dir, err)
		}
	}
	for dir := range walDirs {
		if err := c.syncDir(dir); err != nil {
			return fmt.Errorf("delete wal segments in %s: %w", dir, err)
		}
	}
	return nil
}

// finishIndex removes the directory of a WAL index if it has no segments left,
// and else makes the deletions in it durable.
func (c *FileReplicaClient) finishIndex(dir string) error {
	if err := atomicfile.SweepAbandoned(c.fs, dir, 0); err != nil {
		return err
	}
	gone, err := c.removeDir(dir)
	if err != nil || gone {
		return err
	}
	return c.syncDir(dir)
}

// remove removes a file. One that does not exist is no error.
func (c *FileReplicaClient) remove(name string) error {
	if err := c.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
