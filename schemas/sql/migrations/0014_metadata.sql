-- What producers say of an image, a flat object. A version's metadata never changes; a new version has a key of its own.
ALTER TABLE image ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}';
